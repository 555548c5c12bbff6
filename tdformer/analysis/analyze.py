"""Analyses a trained network, part by part: what `tdformer analyze` does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.sampler import at_equal_distances
from data_pipelines.storage.sealed_json import read_sealed, write_sealed
from tdformer.analysis import energy, example_images, mutual_information, surrogates, time_gradients, topdown_use
from tdformer.analysis.baseline import check_comparable
from tdformer.analysis.corrupted_copies import CLEAN, of_keys, with_copies
from tdformer.analysis.mutual_information import ESTIMATORS, Information, check_count
from tdformer.analysis.result_files import RESULT
from tdformer.analysis.samples import Samples
from tdformer.distributed.context import DistContext
from tdformer.inference.networks import Network, data_of
from tdformer.training.datasets import check_classes, open_set

FORMAT = "tdformer analysis 1"
NEEDS_FEEDBACK = ("surrogates", "topdown_use")
NEEDS_TIME = ("mutual_information", "time_gradients")
PARTS = ("topdown_use", "mutual_information", "time_gradients", "surrogates", "attention_maps", "energy")
"""The parts of an analysis, in the order in which they are measured and shown."""

BATCH = 64
"""The largest number of images in one pass. Ranks share batches, so small ones spread the work."""

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Takes a description and a total, and gives a function that advances by a number."""


@dataclass(frozen=True)
class Request:
    """What is to be analysed."""

    network: Network
    baseline: Network | None
    location: str | None
    """The data set. None: the validation set of the network's run."""
    samples: int
    only: Sequence[str]
    """Parts. Empty: all that this network has."""
    out: Path
    suite: Path | None = None
    """A corruption suite of the data set, for attention maps of corrupted images."""
    images: Sequence[str] = ()
    """Keys of the samples whose attention maps are shown. Empty: some at equal distances."""


@dataclass(frozen=True)
class Subject:
    """The images on which networks are analysed."""

    samples: Samples
    columns: dict[str, Samples]
    """The samples that are in the suite, and their corrupted copies, by name. Without a suite it holds the samples alone."""
    shown: dict[str, Samples]
    """The samples whose attention maps are shown, in the same form."""


def analyze(request: Request, context: DistContext, progress: Progress) -> dict[str, Any]:
    """Measure all parts, and write analysis.json after each. Parts that are there already are kept. Collective.

    Returns the whole analysis. Raises UserError, on all ranks alike, for what cannot be measured.
    """
    parts = _wanted(request)
    notes = check_comparable(request.network, request.baseline) if request.baseline else []
    subject = _subject(request, context)
    if "mutual_information" in parts:
        check_count(subject.samples.count)
    analysis = {**_begin(request, subject), "notes": notes}
    analysis = context.broadcast(context.on_all_ranks(lambda: _with_earlier_parts(analysis, request.out) if context.is_rank0 else None))
    networks = {"network": request.network, **({"baseline": request.baseline} if request.baseline else {})}
    for network in networks.values():
        network.model.to(context.device)
    for part in parts:
        if part in analysis["parts"]:
            continue
        with progress(part.replace("_", " "), len(networks) * math.ceil(subject.samples.count / context.world_size)) as advance:
            found = _measure(part, networks, replace(subject, samples=replace(subject.samples, on_batch=advance)))
        if context.is_rank0:
            analysis["parts"][part] = found
            _write(analysis, request.out)
    return analysis


def _wanted(request: Request) -> list[str]:
    """Return the parts to measure. Raises UserError if one was asked for that this network cannot have."""
    model = request.network.model
    reasons = {
        **{part: "it has no top-down path" for part in NEEDS_FEEDBACK if model.processing is None or model.segments < 2},
        **{part: "it has one time step" for part in NEEDS_TIME if model.time_steps < 2},
    }
    for part in request.only:
        if part not in PARTS:
            raise UserError(f"--only {part}: there is no such part; the parts are {', '.join(PARTS)}.")
        if part in reasons:
            raise UserError(f"{request.network.path} has no part {part}: {reasons[part]}; leave it out of --only.")
    return [part for part in PARTS if part in (request.only or PARTS) and part not in reasons]


def _samples(request: Request, context: DistContext) -> Samples:
    network = request.network
    config = data_of(network, request.location)
    data = context.on_all_ranks(lambda: open_set(config.val, config, network.model.config))
    context.on_all_ranks(lambda: check_classes(data, network.classes, f"{network.path} was trained on"))
    return Samples(config, data, at_equal_distances(len(data), request.samples), min(network.batch, BATCH), context)


def _subject(request: Request, context: DistContext) -> Subject:
    samples = _samples(request, context)
    columns = _with_copies(request, samples, context)
    shown = example_images.at_distances(columns)
    if request.images:
        shown = _with_copies(request, context.on_all_ranks(lambda: of_keys(samples, request.images)), context)
    return Subject(samples, columns, shown)


def _with_copies(request: Request, samples: Samples, context: DistContext) -> dict[str, Samples]:
    """Return the samples and their copies in the suite. If there is a suite, only samples that are in it are left."""
    if request.suite is None:
        return {CLEAN: samples}
    suite, network = request.suite, request.network

    def open_copy(location: str) -> DataSet:
        data = open_set(location, samples.config, network.model.config)
        check_classes(data, network.classes, f"{network.path} was trained on")
        return data

    return context.on_all_ranks(lambda: with_copies(samples, suite, open_copy))


def _begin(request: Request, subject: Subject) -> dict[str, Any]:
    samples = subject.samples
    return {
        "format": FORMAT,
        "network": request.network.described(),
        "baseline": request.baseline.described() if request.baseline else None,
        "data": {
            "location": samples.data.location,
            "digest": samples.data.digest(),
            "samples": samples.count,
            "of": len(samples.data),
            "image_size": samples.config.image_size,
            "asked": request.samples,
            "suite": {name: of.data.digest() for name, of in subject.columns.items() if name != CLEAN},
            "images": list(request.images),
        },
        "parts": {},
    }


def _with_earlier_parts(analysis: dict[str, Any], out: Path) -> dict[str, Any]:
    """Return the analysis with the parts that `out` holds of the same one. Raises UserError if it holds another one."""
    path = out / RESULT
    try:
        earlier = read_sealed(path)
        same = all(earlier[key] == value for key, value in analysis.items() if key != "parts")
        parts = dict(earlier["parts"])
    except FileNotFoundError:
        return analysis
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give another --out, or remove it.") from None
    if not same:
        raise UserError(f"{path} is of another network, baseline, data set, suite or number of samples; give another --out, or remove it.")
    return analysis | {"parts": parts}


def _write(analysis: dict[str, Any], out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_sealed(out / RESULT, analysis)
    except OSError as error:
        raise UserError(f"{out / RESULT} cannot be written ({error.strerror or error}); give another --out.") from None


def _measure(part: str, networks: dict[str, Network], subject: Subject) -> dict[str, Any]:
    """Measure one part of each network that can have it."""
    samples, context = subject.samples, subject.samples.context
    if part == "mutual_information":
        return _mutual_information(networks, samples, context)
    if part == "attention_maps":
        measured = partial(example_images.measure, columns=subject.columns, shown=subject.shown, on_samples=samples.on_batch)
        return {who: measured(network.model) for who, network in networks.items()}
    measure = {"topdown_use": topdown_use, "surrogates": surrogates, "time_gradients": time_gradients, "energy": energy}[part].measure
    return {
        who: measure(network.model, samples, context)
        for who, network in networks.items()
        if part not in NEEDS_FEEDBACK or (network.model.processing is not None and network.model.segments > 1)
    }


def _mutual_information(networks: dict[str, Network], samples: Samples, context: DistContext) -> dict[str, Any]:
    found = {who: mutual_information.measure(network.model, samples, samples.count, context) for who, network in networks.items()}
    of_network, of_baseline = found["network"], found.get("baseline")
    result = {who: {stage: mutual_information.described(info) for stage, info in (of or {}).items()} for who, of in found.items()}
    if of_network is not None and of_baseline is not None:
        result["difference"] = _differences(of_network, of_baseline)
    return result


def _differences(network: dict[str, Information], baseline: dict[str, Information]) -> dict[str, Any]:
    """Return the differences of the means over pairs of time steps, for the stages that both networks have."""
    return {
        stage: {estimator: vars(network[stage].minus(baseline[stage], estimator)) for estimator in ESTIMATORS}
        for stage in network
        if stage in baseline
    }
