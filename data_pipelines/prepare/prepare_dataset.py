"""Writing a data set: a source, shuffled, in parts that many processes write and that a kill does not lose."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.index import digest_of, index_name
from data_pipelines.formats.manifest import UNFINISHED, Kind, Manifest
from data_pipelines.formats.manifest_reader import read_manifest
from data_pipelines.loading.open_dataset import open_set
from data_pipelines.prepare.decoded_samples import WholeSamples
from data_pipelines.prepare.ffcv_part_writer import FfcvParts
from data_pipelines.prepare.journal import LEFT_OUT, LeftOut, PartRecord, read_record, write_record
from data_pipelines.prepare.options import Part, Plan, Storage
from data_pipelines.prepare.wds_part_writer import WdsParts
from data_pipelines.prepare.working_folder import cannot_be_written, difference, is_written, working_folder
from data_pipelines.processes import each
from data_pipelines.sources.base import Source
from data_pipelines.storage.files import replace_file

Parts = WdsParts | FfcvParts


def parts_of(folder: Path, work: Path, storage: Storage, seed: int) -> Parts:
    kind = FfcvParts if storage.format == "ffcv" else WdsParts
    return kind(folder, work, storage, seed)


@dataclass(frozen=True)
class Prepared:
    """samples: in the set now. left_out: files that were no whole image. kept: samples that an earlier attempt had written."""

    samples: int
    left_out: int
    kept: int
    already_there: bool = False


def prepare(
    source: Source, folder: Path, plan: Plan | None = None, *, processes: int = 1, progress: Callable[[int], None] = lambda done: None
) -> Prepared:
    """Write a source into `folder`. The bytes depend on source and plan alone, not on the number of processes or on interruptions.

    progress is called with the number of samples done since its last call. Writes nothing if this very set is there already.
    Raises DataError if another one is (nothing is ever overwritten), if no sample is whole, or, by choice, at the first that is
    not. Interrupted in any way, the same call goes on.
    """
    plan = plan or Plan()
    kind = _kind(source)
    if kind == "events" and plan.storage != Storage():
        raise UserError("event frames are stored as they are: --format wds, without sizes or qualities.")
    recipe = plan.recipe(source)
    if is_written(folder):
        return _there_already(folder, recipe)
    with working_folder(folder, recipe) as work:
        parts = parts_of(folder, work, plan.storage, plan.seed)
        written, kept = _write_parts(source, parts, plan, processes, progress)
        left_out = [place for record in written for place in record.left_out]
        if len(left_out) == len(source):
            raise DataError(f"none of the {len(source)} files is a whole image; the first: {left_out[0].place}: {left_out[0].reason}.")
        _finish(folder, parts, written, left_out, recipe, kind)
        shutil.rmtree(work, ignore_errors=True)
    return Prepared(len(source) - len(left_out), len(left_out), kept)


def _write_parts(source: Source, parts: Parts, plan: Plan, processes: int, progress: Callable[[int], None]) -> tuple[list[PartRecord], int]:
    """The records of all parts, in order, and how many samples an earlier attempt had written."""
    planned = plan.parts(len(source))
    found = (read_record(parts.work, part.number, parts.path(part.number)) for part in planned)
    records = {record.number: record for record in found if record}
    kept = sum(record.samples for record in records.values())
    for part in planned:
        if part.number in records:
            progress(len(part.samples))
    todo = [part for part in planned if part.number not in records]
    for record in each(_write_part, (source, parts, plan), todo, processes):
        records[record.number] = record
        progress(record.samples + len(record.left_out))
    return [records[part.number] for part in planned], kept


def _kind(source: Source) -> Kind:
    """As the first sample says that can be read."""
    for index in range(len(source)):
        with suppress(DataError):
            return "events" if source[index].extension == "npy" else "images"
    return "images"


def state_of(source: Source, folder: Path, plan: Plan) -> str:
    """What `prepare` would do, in words. Raises DataError as it would."""
    recipe = plan.recipe(source)
    if is_written(folder):
        _there_already(folder, recipe)
        return "already there"
    return "would go on" if (folder / UNFINISHED).exists() else "would be written"


def _there_already(folder: Path, recipe: dict[str, Any]) -> Prepared:
    manifest = read_manifest(folder)
    if other := difference({**manifest.recipe, "classes": manifest.classes}, recipe):
        raise DataError(f"{folder} already holds another data set ({other}); choose another folder, or remove this one first.")
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # left by a kill between the manifest and the end
    return Prepared(len(open_set(folder)), manifest.left_out, manifest.samples, already_there=True)


def _write_part(shared: tuple[Source, Parts, Plan], part: Part) -> PartRecord:
    source, parts, plan = shared
    samples = WholeSamples(source, part, plan.storage.short_side, stop_at_bad=plan.stop_at_bad)
    try:
        info = parts.write(part.number, samples)
        record = PartRecord(part.number, info.samples, info.bytes, info.sha256, samples.left_out)
        write_record(parts.work, record)
    except OSError as error:
        raise cannot_be_written(parts.path(part.number), error) from None
    return record


def _finish(folder: Path, parts: Parts, records: list[PartRecord], left_out: list[LeftOut], recipe: dict[str, Any], kind: Kind) -> None:
    try:
        shards, index = parts.join(records)
        index.save(folder / index_name(shards))
        if left_out:
            lines = "".join(f"{place}\t{reason}\n" for place, reason in left_out)
            replace_file(folder / LEFT_OUT, lambda path: path.write_text(lines, errors="backslashreplace"))
        recipe = dict(recipe)
        classes, blocks = recipe.pop("classes"), [record.samples for record in records if record.samples]
        digest = digest_of(index, blocks)
        Manifest(parts.storage.format, kind, classes, shards, blocks, digest, recipe, len(left_out)).write(folder)
    except OSError as error:
        raise cannot_be_written(folder, error) from None
