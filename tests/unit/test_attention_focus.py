"""Attention on objects: masks of images before a plain background, and the share of a map that lies on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.loading.sampler import at_equal_distances
from data_pipelines.prepare.corrupted_source import CorruptedSource
from tdformer.analysis.attention_focus import Focus
from tdformer.analysis.attention_maps import AttentionMaps
from tdformer.analysis.corrupted_copies import CLEAN, of_keys, with_copies
from tdformer.analysis.object_masks import object_masks
from tdformer.analysis.samples import Samples
from tdformer.config.schema import DataConfig
from tdformer.distributed.context import DistContext
from tests.stripes import StripesSource, stored
from tests.unit.analysed import alone


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    with alone() as context:
        yield context


def with_square(background: float, colour: float, side: int = 8, size: int = 16) -> torch.Tensor:
    image = torch.full((3, size, size), background)
    image[:, 2 : 2 + side, 3 : 3 + side] = colour
    return image


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.04))
def test_the_object_is_what_differs_from_a_plain_background(background: float, colour: float, noise: float) -> None:
    image = with_square(background, colour) + noise * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    (mask,) = object_masks(image[None])
    expected = torch.zeros(16, 16, dtype=torch.bool)
    if abs(background - colour) > 0.15:
        expected[2:10, 3:11] = True
        assert torch.equal(mask, expected)
    elif abs(background - colour) < 0.05:
        assert not mask.any()


def test_images_without_an_object_have_no_mask() -> None:
    noisy = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    dot, everything = with_square(0.0, 1.0, side=2), with_square(0.0, 1.0, side=2)
    everything[:] = 0.0
    assert not object_masks(torch.stack([noisy, dot, everything])).any()


def maps(*passes: list[list[float]]) -> AttentionMaps:
    values_NBHW = torch.tensor(passes)[:, None].expand(-1, 3, -1, -1)
    return AttentionMaps(values_NBHW, values_NBHW, torch.zeros(len(passes), 3, dtype=torch.long))


def test_shares_of_known_maps(context: DistContext) -> None:
    """The object is the left half; the first pass looks everywhere, the second one at the left, and one image is silent."""
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:, :, :4] = True
    masks[2] = False  # an image without an object
    focus = Focus(context)
    focus.add(maps([[1.0, 1.0], [1.0, 1.0]], [[0.9, 0.3], [0.0, 0.0]]), masks)
    silent = maps([[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
    focus.add(silent, masks)
    found = focus.result()
    assert found["rate"] == found["gradient"]
    assert found["rate"]["images"] == 2
    assert found["rate"]["area"] == pytest.approx(0.5)
    assert found["rate"]["passes"] == pytest.approx([0.5, 0.75])
    assert found["rate"]["change"] == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25}, abs=1e-6)


def test_no_image_with_an_object_gives_no_number(context: DistContext) -> None:
    focus = Focus(context)
    focus.add(maps([[1.0, 1.0], [1.0, 1.0]]), torch.zeros(3, 8, 8, dtype=torch.bool))
    assert focus.result()["rate"] == {"images": 0, "area": None, "passes": None, "change": None}


@given(st.integers(1, 60), st.integers(1, 80))
def test_numbers_at_equal_distances_differ_and_reach_over_the_whole(samples: int, count: int) -> None:
    chosen = at_equal_distances(samples, count)
    assert len(set(chosen.tolist())) == len(chosen) == min(samples, count)
    assert chosen[0] == 0
    assert chosen[-1] >= samples - 1 - samples / count


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(StripesSource(12, seed=2), tmp_path_factory.mktemp("copies") / "val")


def test_copies_are_found_by_their_keys_at_the_middle_severity(val: Path, tmp_path: Path, context: DistContext) -> None:
    data = open_dataset(val)
    for kind, severity, count in (("fog", 1, 12), ("fog", 3, 6), ("fog", 5, 12), ("contrast", 2, 6), ("gaussian_noise", 4, 12)):
        stored(CorruptedSource(data, kind, severity, seed=0, samples=count), tmp_path / f"{kind}-{severity}")
    stored(StripesSource(3, seed=5), tmp_path / "other")
    samples = Samples(DataConfig(train=str(val), val=str(val), image_size=32), data, at_equal_distances(12, 12), 4, context)
    columns = with_copies(samples, tmp_path, open_dataset)
    assert list(columns) == [CLEAN, "gaussian_noise-4", "fog-3", "contrast-2"], "in the published order"

    def keys(of: Samples) -> list[str]:
        return [of.data.index.key_of(number) for number in of.chosen.tolist()]

    expected = [data.index.key_of(number) for number in range(0, 12, 2)]
    assert all(keys(of) == expected for of in columns.values())
    assert keys(of_keys(samples, expected[::-1])) == expected[::-1]
    with pytest.raises(UserError, match="has no sample with key nobody; its first one is stripes-"):
        of_keys(samples, [expected[0], "nobody"])


def test_a_suite_of_another_set_is_refused(val: Path, tmp_path: Path, context: DistContext) -> None:
    samples = Samples(DataConfig(train=str(val), val=str(val), image_size=32), open_dataset(val), at_equal_distances(12, 12), 4, context)
    stored(StripesSource(40, seed=5), tmp_path / "one" / "fog-3")
    with pytest.raises(UserError, match=r"has no sample of .*; make one of that set: tdformer data corrupt"):
        with_copies(samples, tmp_path / "one", open_dataset)
    stored(StripesSource(3, seed=5), tmp_path / "two" / "val")
    with pytest.raises(UserError, match="holds no set that is called KIND-SEVERITY, such as fog-3"):
        with_copies(samples, tmp_path / "two", open_dataset)
