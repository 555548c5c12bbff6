"""Mutual information between what a network computes at two time steps, I(H(t); H(s)) [paper figure 1].

H(t) is the output of a stage at time step t, a random variable over images. Two estimates are made of it:

  spikes     the mean over units (a channel at a position) of I(a(t); a(s)), a = 1 if the unit is active, H > 0: the plug-in estimate
             from counts, corrected by Miller and Madow. On the diagonal it is the entropy of a(t).
  features   I(z(t); z(s)) of vectors: z is the mean over positions, in its first principal components over all time steps. It is
             estimated twice, by canonical correlations (exact for Gaussians) and by nearest neighbours (Kraskov et al. 2004).

From each estimate its value on shuffled pairs is subtracted: H(t) of an image beside H(s) of another one, where all information is
bias. Intervals are from random halves of the images. All numbers are in bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch

from data_pipelines.errors import UserError
from tdformer.analysis.estimators import Floats, binary, gaussian, ksg
from tdformer.analysis.estimators.half_samples import Interval, halves, interval
from tdformer.analysis.samples import Part
from tdformer.analysis.stage_outputs import StageOutputs
from tdformer.analysis.sums import add_up
from tdformer.distributed.context import DistContext
from tdformer.models.tdformer import TDFormer

FEWEST_SAMPLES = 100
UNITS = 2048
"""A larger stage is represented by this number of its units, drawn at random."""
GAUSSIAN_COMPONENTS, KSG_COMPONENTS = 10, 3
"""Principal components. Neighbours in more than a few dimensions are far away, and the estimate is then too low."""
SEED = 0


@dataclass(frozen=True)
class Information:
    """The estimates of one stage, for each pair of time steps t < s, as matrices [T, T] that are symmetric.

    halves: the same matrices for each random half of the images, [halves, T, T].
    """

    spikes: Floats
    gaussian: Floats
    ksg: Floats
    halves: dict[str, Floats] = field(repr=False)

    def mean_over_pairs(self, estimator: str) -> Interval:
        """Return the mean over all pairs t < s."""
        return interval(_over_pairs(getattr(self, estimator)), [_over_pairs(matrix) for matrix in self.halves[estimator]])

    def minus(self, other: Information, estimator: str) -> Interval:
        """Return the difference of the means over pairs to another network's on the same images, with the interval of the difference."""
        value = _over_pairs(getattr(self, estimator)) - _over_pairs(getattr(other, estimator))
        pairs = zip(self.halves[estimator], other.halves[estimator], strict=True)
        return interval(value, [_over_pairs(own) - _over_pairs(others) for own, others in pairs])


ESTIMATORS = ("spikes", "gaussian", "ksg")


def measure(model: TDFormer, samples: Iterable[Part], count: int, context: DistContext) -> dict[str, Information] | None:
    """Measure every stage of a network on `count` samples. Collective. Returns the estimates by stage on rank 0.

    Raises UserError for a network of one time step, and for fewer than FEWEST_SAMPLES samples.
    """
    if model.time_steps < 2:
        raise UserError("the network has one time step, so there is no information between time steps; leave out mutual_information.")
    check_count(count)
    masks = halves(count, SEED)
    weights_HN = np.concatenate([np.ones((1, count)), masks])
    outputs, counts, pooled = StageOutputs(model), dict[str, SpikeCounts](), defaultdict[str, list[Floats]](list)
    numbers: list[np.ndarray] = []
    for part in samples:
        with torch.no_grad(), outputs.recorded():
            model.forward_features(part.images)
        numbers.append(part.numbers_B)
        for name, h_TBCHW in outputs.take().items():
            counts.setdefault(name, SpikeCounts()).add(h_TBCHW, weights_HN[:, part.numbers_B])
            pooled[name].append(h_TBCHW.flatten(3).double().mean(3).transpose(0, 1).cpu().numpy())
    gathered = context.gather_to_rank0((numbers, dict(pooled)))
    summed = {name: counts.setdefault(name, SpikeCounts()).summed(context) for name in outputs.names}
    if not context.is_rank0:
        return None
    order = np.argsort(np.concatenate([part for own, _ in gathered for part in own]))
    features = {name: np.concatenate([part for _, of_rank in gathered for part in of_rank.get(name, ())]) for name in outputs.names}
    return {name: _estimates(summed[name], features[name][order], masks) for name in outputs.names}


def check_count(count: int) -> None:
    """Raise UserError for fewer than FEWEST_SAMPLES samples."""
    if count < FEWEST_SAMPLES:
        raise UserError(f"mutual information needs at least {FEWEST_SAMPLES} samples, got {count}; raise --samples.")


# --- spikes ------------------------------------------------------------------------------------------------


class SpikeCounts:
    """Counts how often units are active, alone and together with themselves at another time step, over weighted samples.

    Row 0 of the weights counts all samples, and each other row a random half. Pairs with the next sample of the batch are the
    shuffled ones. A sample that is alone in its batch is left out.
    """

    def __init__(self) -> None:
        self._units: torch.Tensor | None = None
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, h_TBCHW: torch.Tensor, weights_HB: Floats) -> None:
        if h_TBCHW.shape[1] < 2:
            return
        a_TBU = (h_TBCHW.flatten(2)[:, :, self._chosen(h_TBCHW)] > 0).float()
        weights = torch.as_tensor(weights_HB, dtype=torch.float32, device=a_TBU.device)
        next_TBU = a_TBU.roll(1, dims=1)
        together = torch.stack([a_TBU[t] * a_TBU[s] for t, s in combinations(range(len(a_TBU)), 2)])
        shuffled = torch.stack([a_TBU[t] * next_TBU[s] for t, s in combinations(range(len(a_TBU)), 2)])
        new = {
            "samples": weights.sum(1),
            "ones": weights @ a_TBU,
            "next_ones": weights @ next_TBU,
            "together": weights @ together,
            "shuffled": weights @ shuffled,
        }
        self._sums = {name: self._sums[name] + value.double() if self._sums else value.double() for name, value in new.items()}

    def summed(self, context: DistContext) -> dict[str, Floats]:
        """Return the counts over all ranks: samples [H], ones and next_ones [T, H, U], together and shuffled [pairs, H, U]."""
        return {name: value.numpy() for name, value in add_up(self._sums, context).items()}

    def _chosen(self, h_TBCHW: torch.Tensor) -> torch.Tensor:
        if self._units is None:
            units = h_TBCHW[0, 0].numel()
            self._units = torch.randperm(units, generator=torch.Generator().manual_seed(SEED))[:UNITS].to(h_TBCHW.device)
        return self._units


def spike_information(counts: dict[str, Floats]) -> Floats:
    """Return the mean over units for all samples and each half, [H, T, T], with the entropy on the diagonal."""
    samples, ones, after = counts["samples"][:, None], counts["ones"], counts["next_ones"]
    steps = len(ones)
    matrices = np.zeros((len(samples), steps, steps))
    for t in range(steps):
        matrices[:, t, t] = binary.entropy(samples, ones[t]).mean(1)
    for (t, s), together, shuffled in zip(combinations(range(steps), 2), counts["together"], counts["shuffled"], strict=True):
        found = binary.mutual_information(samples, ones[t], ones[s], together)
        by_chance = binary.mutual_information(samples, ones[t], after[s], shuffled)
        matrices[:, t, s] = matrices[:, s, t] = (found - by_chance).mean(1)
    return matrices


# --- features ----------------------------------------------------------------------------------------------


def feature_information(z_NTP: Floats, estimate: Callable[[Floats, Floats], float]) -> Floats:
    """Return the estimate for each pair of time steps minus its value on shuffled pairs, [T, T]. The diagonal is not a number.

    z_NTP: principal components of the features of N samples. Vectors have infinite information about themselves.
    """
    others = np.roll(z_NTP, 1, axis=0)
    steps = z_NTP.shape[1]
    matrix = np.full((steps, steps), np.nan)
    for t, s in combinations(range(steps), 2):
        by_chance = estimate(z_NTP[:, t], others[:, s])
        matrix[t, s] = matrix[s, t] = estimate(z_NTP[:, t], z_NTP[:, s]) - by_chance
    return matrix


def principal_components(z_NTC: Floats, components: int) -> Floats:
    """Project features on their first principal components over all samples and time steps, [N, T, components]."""
    flat = z_NTC.reshape(-1, z_NTC.shape[-1])
    centred = flat - flat.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return (centred @ directions[:, ::-1][:, :components]).reshape(*z_NTC.shape[:2], -1)


def _estimates(counts: dict[str, Floats], z_NTC: Floats, masks: np.ndarray) -> Information:
    spikes = spike_information(counts)
    matrices = {"spikes": spikes[0]}
    of_halves = {"spikes": spikes[1:]}
    for name, components, estimate in (
        ("gaussian", GAUSSIAN_COMPONENTS, gaussian.mutual_information),
        ("ksg", KSG_COMPONENTS, ksg.mutual_information),
    ):
        z_NTP = principal_components(z_NTC, components)
        matrices[name] = feature_information(z_NTP, estimate)
        of_halves[name] = np.stack([feature_information(z_NTP[mask], estimate) for mask in masks])
    return Information(**matrices, halves=of_halves)


def _over_pairs(matrix: Floats) -> float:
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


def described(information: Information) -> dict[str, Any]:
    """Return the estimates ready for JSON."""
    return {
        name: {"matrix": _without_nan(getattr(information, name)), "mean": vars(information.mean_over_pairs(name))} for name in ESTIMATORS
    }


def _without_nan(matrix: Floats) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]
