"""Information between time steps is found in features that are known to share it, and not in others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from data_pipelines.errors import UserError
from tdformer.analysis import mutual_information
from tdformer.analysis.estimators import gaussian
from tdformer.analysis.mutual_information import SpikeCounts, feature_information, principal_components, spike_information
from tdformer.analysis.samples import Part
from tdformer.distributed.context import DistContext
from tdformer.models.tdformer import TDFormer
from tests.unit.analysed import alone, parts_of
from tests.unit.networks import images, lively, small

N = 600


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    with alone() as context:
        yield context


def channel(flip: float) -> torch.Tensor:
    """Spikes [3, N, C, H, W]: the second time step is the first one with flips, the third is independent."""
    generator = torch.Generator().manual_seed(0)
    first, last = (torch.rand(N, 8, 10, 10, generator=generator) < 0.5 for _ in range(2))
    return torch.stack([first, first ^ (torch.rand(first.shape, generator=generator) < flip), last]).float()


@pytest.mark.parametrize("batch", [N, 100, 37])
def test_spikes_of_a_noisy_channel(context: DistContext, batch: int) -> None:
    counts, h = SpikeCounts(), 3 * channel(0.1)  # sums of spikes count as active
    for start in range(0, N, batch):
        part = h[:, start : start + batch]
        counts.add(part, np.ones((1, part.shape[1])))
    (matrix,) = spike_information(counts.summed(context))
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(1 - 0.469, abs=0.01)  # 1 - H(0.1)
    assert matrix[0, 2] == pytest.approx(0, abs=0.002)
    assert np.diag(matrix) == pytest.approx(np.ones(3), abs=0.01)


def test_halves_count_their_samples_alone(context: DistContext) -> None:
    """The first half of the samples is a clean channel, the second one a noisy one."""
    h = torch.cat([channel(0.0)[:, : N // 2], channel(0.5)[:, N // 2 :]], dim=1)
    of_halves = np.stack([np.ones(N), np.arange(N) < N // 2, np.arange(N) >= N // 2])
    counts = SpikeCounts()
    counts.add(h, of_halves)
    both, clean, noisy = spike_information(counts.summed(context))[:, 0, 1]
    assert clean == pytest.approx(1, abs=0.01)
    assert noisy == pytest.approx(0, abs=0.01)
    assert noisy < both < clean


def test_features_by_canonical_correlations() -> None:
    generator = np.random.default_rng(0)
    x, noise, other = generator.standard_normal((3, 3000, 2))
    features = np.stack([x, 0.8 * x + 0.6 * noise, other], axis=1)
    matrix = feature_information(features, gaussian.mutual_information)
    assert matrix[0, 1] == pytest.approx(-np.log2(1 - 0.8**2), abs=0.06)
    assert matrix[0, 2] == pytest.approx(0, abs=0.01)
    assert np.isnan(np.diag(matrix)).all()


def test_principal_components_keep_the_directions_that_vary() -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((200, 3, 6)) * np.array([1, 9, 1, 1, 5, 1])
    kept = principal_components(features, 2)
    assert kept.shape == (200, 3, 2)
    assert np.abs(np.corrcoef(kept[..., 0].ravel(), features[..., 1].ravel())[0, 1]) > 0.99
    assert np.abs(np.corrcoef(kept[..., 1].ravel(), features[..., 4].ravel())[0, 1]) > 0.99


def network() -> tuple[TDFormer, torch.Tensor]:
    torch.manual_seed(0)
    model = lively(TDFormer(small("qkformer-cifar")))
    assert isinstance(model, TDFormer)
    x = images(120)
    model.train()(x)
    return model.eval(), x


def test_a_network_in_batches_of_any_order(context: DistContext) -> None:
    model, x = network()
    whole = mutual_information.measure(model, parts_of(x, 120), 120, context)
    assert whole is not None
    parts = parts_of(x, 40)
    turned = mutual_information.measure(model, [parts[2], parts[0], parts[1]], 120, context)
    assert turned is not None
    assert list(whole) == ["stage1", "stage2", "stage3"]
    for stage, found in whole.items():
        assert np.allclose(turned[stage].gaussian, found.gaussian, atol=1e-6, equal_nan=True)
        interval = found.mean_over_pairs("spikes")
        assert interval.low <= interval.value <= interval.high
        assert found.minus(found, "spikes").value == 0
        assert not found.minus(found, "ksg").excludes_zero


def test_what_cannot_be_measured_is_refused(context: DistContext) -> None:
    nothing: list[Part] = []
    with pytest.raises(UserError, match="one time step"):
        mutual_information.measure(TDFormer(small(time_steps=1, segments=1)), nothing, 200, context)
    with pytest.raises(UserError, match="at least 100 samples, got 99"):
        mutual_information.measure(TDFormer(small()), nothing, 99, context)
