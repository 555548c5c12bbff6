"""The network: the same function as the public backbone, and the top-down path as the paper describes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tdformer.config import BackboneConfig, FeedbackConfig, ModelConfig
from tdformer.membranes import Membranes
from tdformer.models.feedback import ControlModule, ProcessingModule
from tdformer.models.neurons import LIF
from tdformer.models.qkformer import QKFormer
from tdformer.models.tdformer import TDFormer
from tdformer.training.objective import Objective

REFERENCE = Path(__file__).parent.parent / "reference" / "qkformer_imagenet_tiny.safetensors"
SMALL = BackboneConfig(embed_dims=32, num_heads=2, depths=(1, 1, 2))


def small(**changes: object) -> ModelConfig:
    return ModelConfig(**{"backbone": SMALL, "num_classes": 5, "feedback": FeedbackConfig(init_std=0.3), **changes})  # type: ignore[arg-type]


def lively(model: torch.nn.Module) -> None:
    """BatchNorm gains of 2, so that neurons fire in all layers of an untrained small network: weights behind silent
    neurons rightly get no gradient."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 2.0)
            module.momentum = 1.0  # running statistics are those of the last batch


def part(reference: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in reference.items() if name.startswith(prefix)}


def test_backbone_reproduces_the_public_implementation() -> None:
    """Logits, loss, all gradients and BatchNorm buffers in float64, under the published parameter names."""
    reference = load_file(REFERENCE)
    config = BackboneConfig(embed_dims=32, num_heads=2, depths=(1, 2, 2), samples_share_projection=True)
    model = QKFormer(config, num_classes=10, time_steps=4).double()
    model.load_state_dict(part(reference, "state."))
    torch.testing.assert_close(model.eval()(reference["input"]), reference["logits_eval"], rtol=0, atol=1e-10)

    logits = model.train()(reference["input"])
    loss = torch.nn.functional.cross_entropy(logits, reference["target"])
    loss.backward()
    torch.testing.assert_close(logits, reference["logits_train"], rtol=0, atol=1e-10)
    torch.testing.assert_close(loss.view(1), reference["loss_train"], rtol=0, atol=1e-10)
    gradients = part(reference, "grad.")
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-10)
    buffers = dict(model.named_buffers())
    for name, after in part(reference, "after.").items():
        torch.testing.assert_close(buffers[name], after, rtol=0, atol=1e-10)


def test_a_sample_does_not_depend_on_its_batch_unless_asked_to_as_the_public_code() -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    for shared in (False, True):
        torch.manual_seed(1)
        backbone = BackboneConfig(embed_dims=32, num_heads=2, depths=(1, 1, 1), samples_share_projection=shared)
        model = TDFormer(small(backbone=backbone)).double()
        lively(model)
        model.train()(images)
        model.eval()
        alone, in_batch = model(images[2:]), model(images)[2:]
        assert torch.equal(alone, in_batch) is not shared


@pytest.mark.parametrize(("blocks", "parameters"), [("all", 69_092_296), ((6,), 65_553_352)])
def test_parameter_counts_are_the_papers(blocks: object, parameters: int) -> None:
    """69.09 M and 65.55 M; each block with feedback adds 768 x 768, the processing module 768."""
    with torch.device("meta"):
        model = TDFormer(ModelConfig(feedback=FeedbackConfig(blocks=blocks)))  # type: ignore[arg-type]
        backbone = QKFormer(BackboneConfig(), num_classes=1000, time_steps=4)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 64_962_760
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("segments", [2, 4])
@pytest.mark.parametrize("carry_membrane", [True, False])
@pytest.mark.parametrize("blocks", ["all", (1,)])
def test_every_parameter_gets_a_gradient(segments: int, carry_membrane: bool, blocks: object) -> None:
    torch.manual_seed(0)
    feedback = FeedbackConfig(blocks=blocks, init_std=0.3)  # type: ignore[arg-type]
    objective = Objective(small(segments=segments, carry_membrane=carry_membrane, feedback=feedback), label_smoothing=0.1)
    lively(objective)
    objective(torch.randn(4, 3, 64, 64), torch.arange(4)).backward()
    without = [name for name, parameter in objective.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert without == []


def test_one_segment_is_the_backbone() -> None:
    torch.manual_seed(0)
    model, images = TDFormer(small(segments=1)), torch.randn(2, 3, 32, 48)
    assert torch.equal(model(images), model.backbone(images))


def test_segments_with_carried_membranes_and_zero_feedback_are_the_backbone_in_pieces() -> None:
    """In evaluation mode, where BatchNorm does not see segments, cutting the time steps changes nothing."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    whole = TDFormer(small(segments=1, feedback=None)).double()
    lively(whole)
    whole.train()(images)
    whole.eval()
    for segments in (2, 4):
        pieces = TDFormer(small(segments=segments, feedback=FeedbackConfig(init_std=0.0))).double().eval()
        pieces.load_state_dict(whole.state_dict(), strict=False)
        assert torch.equal(torch.cat(pieces.forward_features(images)), whole.forward_features(images)[0])
        resetting = TDFormer(small(segments=segments, feedback=None, carry_membrane=False)).double().eval()
        resetting.load_state_dict(whole.state_dict())
        features = resetting.forward_features(images)
        assert all(torch.equal(feature, features[0]) for feature in features)  # nothing links the segments


def test_feedback_reaches_the_later_segments_only() -> None:
    torch.manual_seed(0)
    images, model = torch.randn(2, 3, 64, 64), TDFormer(small())
    lively(model)
    model.train()(images)
    model.eval()
    with_feedback = model.forward_segments(images)
    for block in model.backbone.stage3:
        torch.nn.init.zeros_(block.attn.control.td_conv.weight)
    without = model.forward_segments(images)
    assert torch.equal(with_feedback[0], without[0])
    assert not torch.equal(with_feedback[1], without[1])


def test_backbone_weights_do_not_depend_on_the_feedback() -> None:
    torch.manual_seed(0)
    plain = TDFormer(small(feedback=None)).state_dict()
    torch.manual_seed(0)
    controlled = TDFormer(small()).state_dict()
    assert all(torch.equal(controlled[name], tensor) for name, tensor in plain.items())


def test_control_module_is_the_papers_widened_map() -> None:
    """W_bu S_bu + W_td S_td equals one CxC plus CxC map on the concatenation [S_bu, S_td]."""
    torch.manual_seed(0)
    control, bottom_up = ControlModule(8, init_std=1.0).double(), torch.nn.Conv1d(8, 8, 1, bias=False).double()
    s_bu, s_td = torch.randint(0, 3, (2, 3, 8, 5)).double(), torch.randint(0, 2, (2, 3, 8, 5)).double()
    widened = torch.cat([bottom_up.weight, control.td_conv.weight], dim=1)[..., 0]
    expected = torch.einsum("oc,tbcn->tbon", widened, torch.cat([s_bu, s_td], dim=2))
    ours = bottom_up(s_bu.flatten(0, 1)).unflatten(0, (2, 3)) + control(s_td)
    torch.testing.assert_close(ours, expected)


def test_processing_module_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    module, x = ProcessingModule(6, clamp=(0.1, 1.5)).double(), torch.randint(0, 4, (3, 2, 6, 4, 5)).double()
    w = module.weight.detach() / module.weight.detach().norm()
    spatial_map = torch.einsum("c,tbchw->tbhw", w, x).clamp(0.1, 1.5)[:, :, None]
    assert torch.equal(module(x, Membranes()), LIF()(x * spatial_map, Membranes()))


def test_membranes_carry_is_the_same_as_one_long_run() -> None:
    lif, x = LIF(), torch.rand(6, 2, 3) * 2
    first = Membranes()
    second_start = lif(x[:4], first)
    in_pieces = torch.cat([second_start, lif(x[4:], Membranes(first.after))])
    assert torch.equal(in_pieces, lif(x, Membranes()))


def test_objective_weighs_the_segments_losses() -> None:
    torch.manual_seed(0)
    config = small(segments=4)
    assert config.segment_loss_weights() == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert small(segments=2).segment_loss_weights() == (0.3, 0.7)
    objective, images, labels = Objective(config, label_smoothing=0.1).eval(), torch.randn(2, 3, 32, 32), torch.tensor([0, 4])
    logits = objective(images)
    expected = sum(
        weight * torch.nn.functional.cross_entropy(logits[n], labels, label_smoothing=0.1) for n, weight in enumerate((0.1, 0.2, 0.3, 0.4))
    )
    torch.testing.assert_close(objective(images, labels), expected)


def test_sizes_that_the_stride_does_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 16, got \(40, 32\)"):
        TDFormer(small())(torch.zeros(1, 3, 40, 32))


def test_autocast_leaves_membranes_and_statistics_in_fp32() -> None:
    torch.manual_seed(0)
    model = TDFormer(small())
    lif = model.backbone.patch_embed1.proj1_lif
    dtypes = []
    lif.register_forward_hook(lambda module, inputs, spikes: dtypes.append((inputs[0].dtype, inputs[1].after[module].dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 3, 32, 32))
    assert dtypes == [(torch.bfloat16, torch.float32)] * 2
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32, torch.int64}
