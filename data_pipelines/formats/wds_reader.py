"""Reads single samples from WebDataset shards, with one seek each."""

from __future__ import annotations

from data_pipelines.errors import DataError
from data_pipelines.formats.event_frames import NPY_MAGIC, decode_frames
from data_pipelines.formats.images import Pixels, decode_image
from data_pipelines.formats.index import Index
from data_pipelines.storage.passing_trouble import read_error
from data_pipelines.storage.shard_files import ShardFiles


class WdsReader:
    """Reads and decodes samples of tar shards."""

    def __init__(self, shards: ShardFiles, index: Index) -> None:
        self.shards, self.index = shards, index

    def read(self, sample: int) -> Pixels:
        """Decode a sample to an image or to event frames. Raises DataError or UnavailableError, without the shard and the key."""
        data = self._bytes(sample)
        return decode_frames(data) if data.startswith(NPY_MAGIC) else decode_image(data)

    def _bytes(self, sample: int) -> bytes:
        row = self.index.rows[sample]
        size = int(row["size"])
        try:
            # The shard is opened for each read. One open file per shard would exceed the usual limit of 1,024 on ImageNet.
            with self.shards.open(int(row["shard"])) as shard:
                shard.seek(int(row["offset"]))
                data = shard.read(size)
        except OSError as error:
            raise read_error("the shard", error, f"the shard cannot be read ({error.strerror})", was_there=True) from None
        if len(data) != size:
            raise DataError(f"the shard ends after {len(data)} of the image's {size} bytes")
        return data
