"""Evaluates a network on a data set, or on a suite of them: what `tdformer evaluate` does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.manifest import MANIFEST, UNFINISHED
from data_pipelines.loading.dataloader import evaluation_batches
from data_pipelines.loading.dataset import DataSet
from data_pipelines.storage.passing_trouble import reading
from data_pipelines.storage.patience import SOME_PATIENCE
from tdformer import garbage
from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext, init_distributed
from tdformer.distributed.idle_gpus import notes_on_idle_gpus
from tdformer.distributed.watchdog.diagnosis import Timeouts
from tdformer.evaluation import evaluate
from tdformer.inference.early_exit import Answers, Rule, costs_of, report
from tdformer.inference.subjects import Known, Subject
from tdformer.models.autocast import autocast
from tdformer.models.tdformer import TDFormer
from tdformer.training.datasets import check_classes, open_val
from tdformer.training.faults.waiting import patience_of
from tdformer.training.kernel_choice import choose_kernels

Energy = Sequence[dict[str, Any]] | None
"""The `segments` of an energy analysis, if there is one."""


@dataclass(frozen=True)
class Trained:
    """Holds a network, on this rank's device and in evaluation mode."""

    config: RunConfig
    known: Known
    model: TDFormer
    context: DistContext


def evaluate_subject(subject: Subject, leaving: Rule | None = None, energy: Energy = None) -> dict[str, Any] | None:
    """Join the other processes and evaluate a network on the validation set of its configuration.

    leaving: also report what early exit by this rule gives. energy: what each segment costs, from an analysis. Returns the result on rank
    0, ready for JSON.
    """
    with _trained(subject) as trained:
        answers = Answers(leaving.criterion) if leaving else None
        result = _evaluate_on(trained.config.data.val, trained, answers)
        if leaving and answers:
            right_SN, sure_SN = answers.on_all_ranks(trained.context)
            costs = costs_of(trained.model.time_steps, trained.model.segments, energy)
            result["exit"] = report(right_SN, sure_SN, leaving, costs)
        return {**trained.known.described, **result} if trained.context.is_rank0 else None


def evaluate_suite(subject: Subject, suite: Path) -> dict[str, Any] | None:
    """Evaluate a network on every data set in a folder, such as the corruptions of ImageNet-C.

    mean_top1 in the result gives each data set the same weight. Otherwise as evaluate_subject.
    """
    with _trained(subject) as trained:
        context = trained.context
        folders = context.broadcast(context.on_all_ranks(lambda: data_sets_in(suite), patience_of(trained.config, context)))
        results = [{"data_set": folder.name, **_evaluate_on(str(folder), trained)} for folder in folders]
        mean = sum(result["top1"] for result in results) / len(results)
        return {**trained.known.described, "data_sets": results, "mean_top1": mean} if context.is_rank0 else None


@contextmanager
def _trained(subject: Subject) -> Iterator[Trained]:
    with init_distributed() as context:
        config = context.broadcast(context.on_all_ranks(subject.config, SOME_PATIENCE))
        patience = patience_of(config, context)
        known = context.broadcast(context.on_all_ranks(lambda: subject.check() if context.is_rank0 else None, patience))
        model = TDFormer(config.model).to(context.device).eval()
        context.on_all_ranks(lambda: subject.load_into(model), patience)
        choose_kernels(model, config.training.kernels, context)
        notes = notes_on_idle_gpus(context)
        for note in notes if context.is_rank0 else ():
            print(f"note: {note}", file=sys.stderr)
        context.watchdog.configure(Timeouts.from_config(config.watchdog.timeout_s, config.watchdog.slow_timeout_s))
        garbage.search_among_new_objects()
        yield Trained(config, known, model, context)


def data_sets_in(suite: Path) -> list[Path]:
    """Return the data sets in a folder. Raises UserError if there is none, or one that is not finished."""
    with reading(suite):
        if unfinished := sorted(path for path in suite.glob("*") if (path / UNFINISHED).is_dir() and not (path / MANIFEST).is_file()):
            raise UserError(f"{unfinished[0]} is not finished; give again the command that wrote it, or remove that folder.")
        if folders := sorted(path for path in suite.glob("*") if (path / MANIFEST).is_file()):
            return folders
    raise UserError(f"{suite} holds no data set; write some there with: tdformer data prepare SOURCE {suite}")


def _evaluate_on(location: str, trained: Trained, answers: Answers | None = None) -> dict[str, Any]:
    config, context = trained.config, trained.context
    data = config.data.model_copy(update={"val": location})
    patience = patience_of(config, context)
    val_set = context.on_all_ranks(lambda: open_val(config.model_copy(update={"data": data})), patience)
    context.on_all_ranks(lambda: _check_classes(val_set, trained))
    batches = evaluation_batches(
        data, val_set, batch=config.training.eval_batch, rank=context.rank, world_size=context.world_size, patience=patience
    )
    start = time.perf_counter()
    with autocast(context.device, config.training.precision):
        result = evaluate(trained.model.forward_segments, batches, context, on_logits=answers.add if answers else None)
    return {**asdict(result), "images_per_s": result.samples / (time.perf_counter() - start)}


def _check_classes(val_set: DataSet, trained: Trained) -> None:
    """Raise DataError unless the data set has the network's classes: by name, or by number if the network knows no names."""
    if trained.known.classes is not None:
        check_classes(val_set, trained.known.classes, "the network was trained on")
    elif len(val_set.classes) != trained.config.model.num_classes:
        raise DataError(
            f"{val_set.location} names {len(val_set.classes)} classes, and the network has {trained.config.model.num_classes}; give the "
            f"data set that it was trained for."
        )
