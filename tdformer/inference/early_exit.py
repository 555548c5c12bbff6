"""Early exit: answering after the first segment that is sure enough, and what that costs in accuracy.

A sample leaves after the first segment whose certainty reaches a threshold, and after the last one in any case. Certainty is a number from
0 to 1, of the probabilities p that a segment's logits give:

  confidence   the largest p
  margin       the largest p less the second largest
  entropy      1 - H(p) / log K, for K classes, where H is the entropy
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from data_pipelines.errors import UserError
from data_pipelines.loading.batch import PADDING_LABEL, Batch
from tdformer.config.yaml_io import did_you_mean
from tdformer.distributed.context import DistContext

Criterion = Literal["confidence", "margin", "entropy"]
POINTS = 51
"""The number of thresholds of a curve. They are quantiles of the certainties, so that each lets about as many samples more leave."""


@dataclass(frozen=True)
class Rule:
    """When a sample leaves. threshold: None draws the curve alone."""

    criterion: Criterion
    threshold: float | None
    mean_time_steps: float | None = None
    """The mean cost for which a threshold is looked for, on half of the samples. The other half is then reported."""


def parse_rule(text: str, mean_time_steps: float | None = None) -> Rule:
    """Read `confidence` or `confidence=0.9`. Raises UserError."""
    name, equals, number = text.partition("=")
    known: tuple[Criterion, ...] = get_args(Criterion)
    criterion = next((one for one in known if one == name), None)
    if criterion is None:
        raise UserError(f"--exit {text!r}: there is no criterion {name!r}{did_you_mean(name, known)} (allowed: {', '.join(known)})")
    try:
        threshold = float(number) if equals else None
    except ValueError:
        threshold = math.nan
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"--exit {text}: the threshold must be a number from 0 to 1, got {number!r}")
    if threshold is not None and mean_time_steps is not None:
        raise UserError("--exit has a threshold, and --mean-steps looks for one; give one of them.")
    return Rule(criterion, threshold, mean_time_steps)


def certainty(logits_NBK: torch.Tensor, criterion: Criterion) -> torch.Tensor:
    """Return how sure each segment is, [segments, B], from 0 to 1."""
    p_NBK = logits_NBK.double().softmax(2)
    if p_NBK.shape[2] == 1:
        return torch.ones_like(p_NBK[..., 0])
    match criterion:
        case "confidence":
            return p_NBK.amax(2)
        case "margin":
            first, second = p_NBK.topk(2, dim=2).values.unbind(2)
            return first - second
        case "entropy":
            return 1 + torch.special.xlogy(p_NBK, p_NBK).sum(2) / math.log(p_NBK.shape[2])


class Answers:
    """Collects what each segment answered, sample by sample, over all ranks."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion: Criterion = criterion
        self._rows: list[tuple[str, list[bool], list[float]]] = []

    def add(self, batch: Batch, logits_NBK: torch.Tensor) -> None:
        """Add a batch. Its padding is left out."""
        right_BN = (logits_NBK.argmax(2) == batch.labels_B).T.tolist()
        sure_BN = certainty(logits_NBK, self.criterion).T.tolist()
        labels = batch.labels_B.tolist()
        rows = zip(batch.keys, right_BN, sure_BN, labels, strict=True)
        self._rows += [(key, right, sure) for key, right, sure, label in rows if label != PADDING_LABEL]

    def on_all_ranks(self, context: DistContext) -> tuple[np.ndarray, np.ndarray]:
        """Return which answers were right, bool [samples, segments], and how sure each was, in the order of the keys. Collective."""
        rows = sorted(row for of_rank in context.all_gather(self._rows) for row in of_rank)
        return np.array([right for _, right, _ in rows], bool), np.array([sure for *_, sure in rows])


@dataclass(frozen=True)
class Costs:
    """What it costs to leave after each segment: time steps, and millijoules by convention if they are known."""

    time_steps: Sequence[float]
    mj: dict[str, Sequence[float]]


def costs_of(time_steps: int, segments: int, energy: Sequence[dict[str, Any]] | None) -> Costs:
    """Return the costs. energy: the `segments` of an energy analysis. The first row is what all segments share."""
    steps = [time_steps * number / segments for number in range(1, segments + 1)]
    if not energy:
        return Costs(steps, {})
    mj = {name: np.cumsum([row[name] for row in energy])[1:].tolist() for name in ("paper_mj", "strict_mj")}
    return Costs(steps, mj)


def report(right_SN: np.ndarray, sure_SN: np.ndarray, rule: Rule, costs: Costs) -> dict[str, Any]:
    """Return the curve over thresholds and, if the rule has or asks for a threshold, what it gives. Ready for JSON."""
    thresholds = _thresholds(sure_SN)
    curve = [_point(right_SN, sure_SN, threshold, costs) for threshold in thresholds]
    found: dict[str, Any] = {"criterion": rule.criterion, "curve": curve}
    if rule.threshold is not None:
        return {**found, **_point(right_SN, sure_SN, rule.threshold, costs)}
    if rule.mean_time_steps is None:
        return found
    fitting = [
        threshold
        for threshold in thresholds
        if _point(right_SN[::2], sure_SN[::2], threshold, costs)["mean_time_steps"] <= rule.mean_time_steps
    ]
    if not fitting:
        raise UserError(
            f"--mean-steps {rule.mean_time_steps:g} cannot be had: the first segment alone takes {costs.time_steps[0]:g} time steps."
        )
    return {**found, "chosen_on": len(right_SN[::2]), **_point(right_SN[1::2], sure_SN[1::2], fitting[-1], costs)}


def _thresholds(sure_SN: np.ndarray) -> list[float]:
    """Return thresholds from one at which all samples leave at once to one at which none leaves early, ascending."""
    early = sure_SN[:, :-1]
    if not early.size:
        return [1.0]
    inside = np.unique(np.quantile(early, np.linspace(0, 1, POINTS), method="lower"))
    return [*inside.tolist(), math.nextafter(float(inside[-1]), math.inf)]


def _point(right_SN: np.ndarray, sure_SN: np.ndarray, threshold: float, costs: Costs) -> dict[str, Any]:
    leaves_SN = sure_SN >= threshold
    leaves_SN[:, -1] = True
    at_S = leaves_SN.argmax(1)
    shares = np.bincount(at_S, minlength=right_SN.shape[1]) / max(len(at_S), 1)
    return {
        "threshold": threshold,
        "samples": len(at_S),
        "top1": 100 * float(right_SN[np.arange(len(at_S)), at_S].mean()) if len(at_S) else math.nan,
        "mean_time_steps": float(shares @ np.array(costs.time_steps)),
        **{f"mean_{name}": float(shares @ np.array(of_segments)) for name, of_segments in costs.mj.items()},
        "share_by_segment": shares.tolist(),
    }
