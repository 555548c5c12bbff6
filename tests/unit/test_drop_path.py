"""Drop path. (In QKFormer's public code its rate does nothing.)"""

from __future__ import annotations

import torch

from tdformer.models.backbones.base import Block
from tdformer.models.layers import DropPath
from tdformer.models.neuron_state import NeuronState
from tdformer.models.tdformer import TDFormer
from tests.unit.networks import BACKBONES, images, lively, small


def test_a_sample_loses_its_branch_at_every_time_step_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    x_TBC = torch.ones(3, 4000, 2)
    y_TBC = DropPath(0.25)(x_TBC)
    torch.testing.assert_close(y_TBC.unique(), torch.tensor([0, 1 / 0.75]))
    assert (y_TBC == y_TBC[:1, :, :1]).all()
    assert abs(float(y_TBC.mean()) - 1) < 0.02
    assert torch.equal(DropPath(0.25).eval()(x_TBC), x_TBC)


def test_a_block_without_its_branches_hands_on_what_it_gets() -> None:
    torch.manual_seed(0)
    model = TDFormer(small(BACKBONES["qkformer-imagenet"].model_copy(update={"drop_path": 0.9})))
    lively(model)
    block = model.backbone.transform()[-1]
    assert isinstance(block, Block)
    assert block.drop_path.probability == torch.tensor(0.9).item()
    x_TBCHW = torch.ones(2, 64, 32, 4, 4)
    unchanged_B = (block(x_TBCHW, None, NeuronState()) == x_TBCHW).flatten(2).all(2).all(0)
    assert unchanged_B.sum() > 0.7 * 64  # 0.9 * 0.9 of them, and those whose neurons are silent
    model.eval()
    assert torch.equal(model(images(2, 64, 64)), model(images(2, 64, 64)))


def test_rates_grow_linearly_over_the_blocks_of_all_stages() -> None:
    model = TDFormer(small(BACKBONES["qkformer-imagenet"].model_copy(update={"drop_path": 0.3})))
    rates = torch.tensor([part.probability for part in model.modules() if isinstance(part, DropPath)])
    torch.testing.assert_close(rates, torch.linspace(0, 0.3, 4))
