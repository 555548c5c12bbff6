"""Writes a data set from a source: many processes write its parts, and a killed run goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.index import dataset_digest, index_name
from data_pipelines.formats.manifest import UNFINISHED, Kind, Manifest
from data_pipelines.formats.manifest_reader import read_manifest
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.journal import PartRecord, write_left_out
from data_pipelines.prepare.options import Encoding, PrepareOptions
from data_pipelines.prepare.part_writer import PartWriter, make_part_writer, write_parts
from data_pipelines.prepare.working_folder import is_complete, recipe_difference, working_folder, write_error
from data_pipelines.sources.base import LeftOut, Source
from data_pipelines.storage.passing_trouble import reading
from data_pipelines.storage.patience import patiently


@dataclass(frozen=True)
class PrepareResult:
    """What a call of `prepare_dataset` did.

    samples: samples in the data set. left_out: files that look like samples and are not in it.
    resumed: samples that an earlier, interrupted call had written.
    """

    samples: int
    left_out: int
    resumed: int
    already_there: bool = False


def prepare_dataset(
    source: Source,
    folder: Path,
    options: PrepareOptions | None = None,
    *,
    processes: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> PrepareResult:
    """Write a source into `folder`. After an interruption of any kind, the same call goes on.

    The bytes depend on source and options alone, not on the number of processes or on interruptions.
    Nothing is written if this data set is there already.
    progress: is called with the number of samples that were done since its last call.
    Raises DataError if the folder holds another data set (nothing is overwritten), if no sample can be decoded, or, with
    options.stop_at_bad, at the first damaged sample. Raises UserError for options that event frames do not have. Raises
    UnavailableError if the source cannot be read now, even with options.patience; then the same call goes on later.
    """
    options = options or PrepareOptions()
    kind = patiently(lambda: _kind(source), options.patience)
    if kind == "events" and options.encoding != Encoding():
        raise UserError("event frames are stored as they are: --format wds, without sizes or qualities.")
    recipe = options.recipe(source)
    if is_complete(folder):
        return _existing(folder, recipe)
    _refuse_left_out(source, options)
    with working_folder(folder, recipe) as work:
        writer = make_part_writer(folder, work, options)
        records, resumed = write_parts(source, writer, options, processes, progress)
        damaged = [entry for record in records for entry in record.left_out]
        if len(damaged) == len(source):
            first = damaged[0]
            raise DataError(f"none of the {len(source)} files is a whole image; the first: {first.origin}: {first.reason}.")
        left_out = sorted([*source.left_out, *damaged])
        _finish(folder, writer, records, left_out, recipe, kind)
        shutil.rmtree(work, ignore_errors=True)
    return PrepareResult(len(source) - len(damaged), len(left_out), resumed)


def preview_preparation(source: Source, folder: Path, options: PrepareOptions) -> str:
    """Say in words what `prepare_dataset` would do, and write nothing. Raises DataError as it would."""
    recipe = options.recipe(source)
    if is_complete(folder):
        _existing(folder, recipe)
        return "already there"
    _refuse_left_out(source, options)
    return "would go on" if (folder / UNFINISHED).exists() else "would be written"


def _refuse_left_out(source: Source, options: PrepareOptions) -> None:
    """Raise DataError for the first entry that looks like a sample and is none, if the options say to stop at such."""
    if options.stop_at_bad and source.left_out:
        first, others = source.left_out[0], len(source.left_out) - 1
        more = f" ({others} more such entries)" if others else ""
        raise DataError(f"{first.origin}: {first.reason}; or leave such files out: --on-bad-image leave-out{more}.")


def _kind(source: Source) -> Kind:
    """Read samples until one is sound, since its extension tells images from events. Raises UnavailableError if one cannot be read now."""
    for index in range(len(source)):
        with suppress(DataError), reading(source.origin(index), was_there=True):
            return "events" if source[index].extension == "npy" else "images"
    return "images"


def _existing(folder: Path, recipe: dict[str, Any]) -> PrepareResult:
    """Check that the data set in `folder` was made by this recipe."""
    manifest = read_manifest(folder)
    if other := recipe_difference({**manifest.recipe, "classes": manifest.classes}, recipe):
        raise DataError(f"{folder} already holds another data set ({other}); choose another folder, or remove this one first.")
    # A kill after the manifest was written, but before the working folder was removed, leaves the working folder.
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    return PrepareResult(len(open_dataset(folder)), manifest.left_out, manifest.samples, already_there=True)


def _finish(
    folder: Path, writer: PartWriter, records: list[PartRecord], left_out: list[LeftOut], recipe: dict[str, Any], kind: Kind
) -> None:
    """Write the index, the list of left-out files, and the manifest. The manifest is last: it makes the data set complete."""
    blocks = [record.samples for record in records if record.samples]
    recipe = dict(recipe)
    classes = recipe.pop("classes")
    try:
        shards, index = writer.finish(records)
        index.save(folder / index_name(shards))
        write_left_out(folder, left_out)
        digest = dataset_digest(index, blocks)
        Manifest(writer.encoding.format, kind, classes, shards, blocks, digest, recipe, len(left_out)).write(folder)
    except OSError as error:
        raise write_error(folder, error) from None
