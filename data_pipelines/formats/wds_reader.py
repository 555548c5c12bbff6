"""A sample from its WebDataset shard, by one seek: any sample of any epoch, without reading those before it."""

from __future__ import annotations

from data_pipelines.errors import DataError
from data_pipelines.formats.event_frames import MAGIC, decode_frames
from data_pipelines.formats.images import Pixels, decode
from data_pipelines.formats.index import Index
from data_pipelines.storage.shard_files import Shards


class TarReader:
    """Reads images, or event frames, out of tar shards."""

    def __init__(self, shards: Shards, index: Index) -> None:
        self.shards, self.index = shards, index

    def read(self, sample: int) -> Pixels:
        data = self._bytes(sample)
        return decode_frames(data) if data.startswith(MAGIC) else decode(data)

    def _bytes(self, sample: int) -> bytes:
        row = self.index.rows[sample]
        size = int(row["size"])
        try:
            # Opened for each read: a descriptor kept per shard would pass the usual limit of 1,024 on ImageNet.
            with self.shards.open(int(row["shard"])) as shard:
                shard.seek(int(row["offset"]))
                data = shard.read(size)
        except OSError as error:
            raise DataError(f"the shard cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise DataError(f"the shard ends after {len(data)} of the image's {size} bytes")
        return data
