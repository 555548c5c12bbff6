"""Shares the parts of a data set among processes, and writes those that are not recorded yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_pipelines.prepare.decoded_samples import DecodedSamples
from data_pipelines.prepare.ffcv_part_writer import FfcvPartWriter
from data_pipelines.prepare.journal import PartRecord, read_record, write_record
from data_pipelines.prepare.options import Part, PrepareOptions
from data_pipelines.prepare.wds_part_writer import WdsPartWriter
from data_pipelines.prepare.working_folder import write_error
from data_pipelines.processes import map_unordered
from data_pipelines.sources.base import Source

PartWriter = WdsPartWriter | FfcvPartWriter


def make_part_writer(folder: Path, work: Path, options: PrepareOptions) -> PartWriter:
    """Make the writer of the format that the options name. Raises UserError if FFCV is asked for and not installed."""
    if options.encoding.format == "ffcv":
        return FfcvPartWriter(folder, work, options.encoding, options.seed)
    return WdsPartWriter(folder, work, options.encoding)


def write_parts(
    source: Source, writer: PartWriter, options: PrepareOptions, processes: int, progress: Callable[[int], None]
) -> tuple[list[PartRecord], int]:
    """Write all parts that have no record yet.

    Returns the records of all parts in order, and the number of samples that an earlier attempt had written.
    """
    parts = options.parts(len(source))
    found = (read_record(writer.work, part.number, writer.path(part.number)) for part in parts)
    records = {record.number: record for record in found if record}
    resumed = sum(record.samples for record in records.values())
    for part in parts:
        if part.number in records:
            progress(len(part.samples))
    missing = [part for part in parts if part.number not in records]
    for record in map_unordered(_write_part, (source, writer, options), missing, processes):
        records[record.number] = record
        progress(record.samples + len(record.left_out))
    return [records[part.number] for part in parts], resumed


def _write_part(shared: tuple[Source, PartWriter, PrepareOptions], part: Part) -> PartRecord:
    """Write one part, then its record."""
    source, writer, options = shared
    samples = DecodedSamples(source, part, options)
    try:
        info = writer.write(part.number, samples)
        record = PartRecord(part.number, info.samples, info.bytes, info.sha256, samples.left_out)
        write_record(writer.work, record)
    except OSError as error:
        raise write_error(writer.path(part.number), error) from None
    return record
