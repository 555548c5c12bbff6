"""The networks: backbones with a top-down path, as the paper describes it."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional
from timm.layers import FrozenBatchNormAct2d
from timm.loss import BinaryCrossEntropy
from torch import nn

from data_pipelines.errors import UserError
from tdformer.config import FeedbackConfig, ModelConfig
from tdformer.config.training import TrainingConfig
from tdformer.models.feedback import ControlModule, ProcessingModule
from tdformer.models.layers import batch_norm_of_repeated
from tdformer.models.neuron_state import NeuronState
from tdformer.models.neurons import LIF, SURROGATE, ParametricLIF
from tdformer.models.registry import create_model
from tdformer.models.tdformer import BACKBONES as FAMILIES
from tdformer.models.tdformer import TDFormer
from tdformer.training.loss import make_loss
from tdformer.training.model_with_loss import ModelWithLoss
from tests.unit.networks import BACKBONES, IMAGE_SIZE, images, lively, small


def test_a_sample_does_not_depend_on_its_batch_unless_asked_to_as_the_public_code() -> None:
    x = images(3).double()
    for shared in (False, True):
        torch.manual_seed(1)
        backbone = BACKBONES["qkformer-cifar"].model_copy(update={"samples_share_projection": shared})
        model = TDFormer(small(backbone)).double()
        lively(model)
        model.train()(x)
        model.eval()
        alone, in_batch = model(x[2:]), model(x)[2:]
        assert torch.equal(alone, in_batch) is not shared


@pytest.mark.parametrize("pooling", ["0011", "1100", "0111", "0000"])
@pytest.mark.parametrize("backbone", ["spikformer-cifar", "sdt-cifar"])
def test_a_pooling_of_ones_own_says_where_height_and_width_are_halved(backbone: str, pooling: str) -> None:
    """The pooling of the variant, 0011, is the same network."""
    config, results = BACKBONES[backbone].model_copy(update={"pooling": pooling}), []
    for own in (config, BACKBONES[backbone]):
        torch.manual_seed(0)
        model = TDFormer(small(own))
        lively(model).train()
        results.append(model(images(2)))
    side = 16 // 2 ** pooling.count("1")
    features_TBCHW = TDFormer(small(config)).forward_features(images(2, 16, 16))
    assert features_TBCHW.shape[-2:] == (side, side) == (16 // config.stride,) * 2
    assert torch.equal(*results) == (pooling == "0011")


# --- feedback -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [2, 4])
@pytest.mark.parametrize("carry_membrane", [True, False])
@pytest.mark.parametrize("blocks", ["all", (1,)])
@pytest.mark.parametrize("backbone", ["qkformer-imagenet", "spikformer-cifar", "sdt-cifar"])
def test_every_parameter_gets_a_gradient(backbone: str, segments: int, carry_membrane: bool, blocks: object) -> None:
    torch.manual_seed(0)
    feedback = FeedbackConfig(blocks=blocks, init_std=0.3)  # type: ignore[arg-type]
    config = small(backbone, segments=segments, carry_membrane=carry_membrane, feedback=feedback)
    model_with_loss = ModelWithLoss(config, label_smoothing=0.1)
    lively(model_with_loss)
    model_with_loss(images(4, IMAGE_SIZE[backbone], IMAGE_SIZE[backbone]), torch.arange(4)).backward()
    trained = {name: parameter for name, parameter in model_with_loss.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("control", ["cm1", "cm2", "cm3"])
@pytest.mark.parametrize("processing", ["v1", "v2", "v3", "v4"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_zero_weights_no_carry_and_one_segment_it_is_its_backbone(backbone: str, control: str, processing: str) -> None:
    """Exactly, in training and in evaluation."""
    feedback = FeedbackConfig(control=control, processing=processing, init_std=0.0)  # type: ignore[arg-type]
    config = small(backbone, segments=1, carry_membrane=False, feedback=feedback)
    torch.manual_seed(0)
    model = TDFormer(config)
    torch.manual_seed(0)
    plain = FAMILIES[config.backbone.family](config.backbone, config.num_classes, config.time_steps)
    x = images(2, 32, 48)
    for network in (model, plain):
        lively(network)
    assert torch.equal(model.train()(x), plain.train()(x))
    assert torch.equal(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_segments_with_carried_membranes_and_zero_feedback_are_the_backbone_in_pieces(backbone: str) -> None:
    """In evaluation mode, where BatchNorm does not see segments, cutting the time steps changes nothing."""
    torch.manual_seed(0)
    x = images(2).double()
    whole = TDFormer(small(backbone, segments=1, feedback=None)).double()
    lively(whole)
    whole.train()(x)
    whole.eval()
    features = whole.forward_features(x)
    for segments in (2, 4):
        pieces = TDFormer(small(backbone, segments=segments, feedback=FeedbackConfig(init_std=0.0))).double().eval()
        pieces.load_state_dict(whole.state_dict(), strict=False)
        assert torch.equal(pieces.forward_features(x), features)
        resetting = TDFormer(small(backbone, segments=segments, feedback=None, carry_membrane=False)).double().eval()
        resetting.load_state_dict(whole.state_dict())
        each = resetting.forward_features(x).unflatten(0, (segments, -1))
        assert all(torch.equal(one, each[0]) for one in each)  # nothing links the segments


@pytest.mark.parametrize("control", ["cm1", "cm2", "cm3"])
@pytest.mark.parametrize("backbone", ["qkformer-imagenet", "qkformer-cifar", "spikformer-cifar", "sdt-imagenet"])
def test_feedback_reaches_the_later_segments_only(backbone: str, control: str) -> None:
    torch.manual_seed(0)
    feedback = FeedbackConfig(control=control, init_std=0.3)  # type: ignore[arg-type]
    x, model = images(2, 64, 64), TDFormer(small(backbone, feedback=feedback))
    lively(model)
    model.train()(x)
    model.eval()
    with_feedback = model.forward_segments(x)
    for point in model.backbone.control_points():
        nn.init.zeros_(point.control.td_conv.weight)
    without = model.forward_segments(x)
    assert torch.equal(with_feedback[0], without[0])
    assert not torch.equal(with_feedback[1], without[1])


def test_backbone_weights_do_not_depend_on_the_feedback() -> None:
    torch.manual_seed(0)
    plain = TDFormer(small(feedback=None)).state_dict()
    torch.manual_seed(0)
    controlled = TDFormer(small()).state_dict()
    assert all(torch.equal(controlled[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize(("variant", "target"), [("cm1", "key"), ("cm2", "value"), ("cm3", "input")])
def test_control_module_is_the_papers_widened_map(variant: str, target: str) -> None:
    """W_bu S_bu + W_td S_td equals one CxC plus CxC map on the concatenation [S_bu, S_td]."""
    torch.manual_seed(0)
    control, bottom_up = ControlModule(8, variant, init_std=1.0).double(), nn.Conv1d(8, 8, 1, bias=False).double()
    assert control.target == target
    s_bu, s_td = torch.randint(0, 3, (2, 3, 8, 5)).double(), torch.randint(0, 2, (2, 3, 8, 5)).double()
    widened = torch.cat([bottom_up.weight, control.td_conv.weight], dim=1)[..., 0]
    expected = torch.einsum("oc,tbcn->tbon", widened, torch.cat([s_bu, s_td], dim=2))
    ours = bottom_up(s_bu.flatten(0, 1)).unflatten(0, (2, 3)) + control(s_td[..., None])
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("variant", "width", "neurons"), [("v1", 1, LIF), ("v2", 3, LIF), ("v3", 3, ParametricLIF), ("v4", 1, ParametricLIF)]
)
def test_processing_module_is_the_papers_formula(variant: str, width: int, neurons: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, x = ProcessingModule(6, variant, clamp=(0.1, 1.5)).double(), torch.randint(0, 4, (3, 2, 6, 4, 5)).double()
    assert isinstance(module.lif, neurons)
    w = module.weight.detach() / module.weight.detach().norm()
    padded = nn.functional.pad(x, (width // 2,) * 4)
    windows = padded.unfold(3, width, 1).unfold(4, width, 1)  # [T, B, C, H, W, width, width]
    spatial_map = torch.einsum("cij,tbchwij->tbhw", w[0], windows).clamp(0.1, 1.5)[:, :, None]
    expected = neurons().double()(x * spatial_map, NeuronState())
    assert torch.equal(module(x, NeuronState()), expected)
    assert expected.any()


def test_objective_weighs_the_segments_losses() -> None:
    torch.manual_seed(0)
    config = small(segments=4)
    assert config.segment_loss_weights() == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert small(segments=2).segment_loss_weights() == (0.3, 0.7)
    model_with_loss, x, labels = ModelWithLoss(config, label_smoothing=0.1).eval(), images(2), torch.tensor([0, 4])
    logits = model_with_loss(x)
    expected = sum(
        weight * nn.functional.cross_entropy(logits[n], labels, label_smoothing=0.1) for n, weight in enumerate((0.1, 0.2, 0.3, 0.4))
    )
    torch.testing.assert_close(model_with_loss(x, labels), expected)


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("mixes", [False, True])
def test_binary_cross_entropy_is_timms(threshold: float | None, mixes: bool) -> None:
    torch.manual_seed(0)
    logits_BK, labels = torch.randn(4, 5), torch.tensor([0, 4, 2, 2])
    if mixes:
        labels = 0.7 * nn.functional.one_hot(labels, 5) + 0.3 * nn.functional.one_hot(labels.flip(0), 5)
    smoothing = 0.1 if threshold is None and not mixes else 0.0  # timm smooths mixed labels where it mixes them
    loss = TrainingConfig(loss="bce", label_smoothing=smoothing, bce_threshold=threshold)
    theirs = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold)(logits_BK, labels)
    torch.testing.assert_close(make_loss(loss)(logits_BK, labels), theirs)


@pytest.mark.parametrize("family", ["qkformer", "sdt"])
@pytest.mark.parametrize("mixes", [False, True])
def test_temporal_efficient_training_takes_the_cross_entropy_of_each_step(family: str, mixes: bool) -> None:
    torch.manual_seed(0)
    config = small(f"{family}-cifar", time_steps=4)
    labels = torch.tensor([0, 4]) if not mixes else torch.tensor([[0.3, 0.7, 0, 0, 0], [0, 0, 0.5, 0.5, 0]])
    criterion = make_loss(TrainingConfig(loss="tet", tet_share=0.25, label_smoothing=0.1))
    model_with_loss = ModelWithLoss(config, 0.1, criterion=criterion)
    lively(model_with_loss)
    steps_NTBK = model_with_loss.model.forward_steps(images(2))
    assert steps_NTBK.shape == (2, 2, 2, 5)
    assert not torch.equal(steps_NTBK[:, 0], steps_NTBK[:, 1])
    torch.testing.assert_close(model_with_loss(images(2)), steps_NTBK.mean(1))

    def of_segment(logits_TBK: torch.Tensor) -> torch.Tensor:
        of_steps = torch.stack([nn.functional.cross_entropy(logits_BK, labels, label_smoothing=0.1) for logits_BK in logits_TBK])
        return 0.75 * of_steps.mean() + 0.25 * nn.functional.mse_loss(logits_TBK, torch.ones_like(logits_TBK))

    expected = 0.3 * of_segment(steps_NTBK[0]) + 0.7 * of_segment(steps_NTBK[1])
    torch.testing.assert_close(model_with_loss(images(2), labels), expected)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("carry", [False, True])
@torch.no_grad()
def test_a_stream_has_the_bits_of_a_pass_and_runs_no_segment_that_nobody_asks_for(backbone: str, carry: bool) -> None:
    """The last block runs once for each of the four segments whose logits are asked for."""
    torch.manual_seed(0)
    side = IMAGE_SIZE[backbone]
    model = lively(TDFormer(small(backbone, time_steps=8, segments=4, carry_membrane=carry)))
    x = images(3, side, side, channels=model.config.backbone.in_channels)
    model.train()(x)
    model.eval()
    expected = model.forward_segments(x)
    assert len({tuple(logits.flatten().tolist()) for logits in expected}) > 1
    ran: list[object] = []
    *_, last = model.backbone.transform()
    last.register_forward_hook(lambda *_: ran.append(None))
    for number, logits_BK in enumerate(model.stream(x), start=1):
        assert torch.equal(logits_BK, expected[number - 1])
        assert len(ran) == number
        if number == 3:
            break
    assert torch.equal(torch.stack(list(model.stream(x))), expected)


# --- neurons ------------------------------------------------------------------------------------------------------


def test_membranes_carry_is_the_same_as_one_long_run() -> None:
    lif, x = LIF(), torch.rand(6, 2, 3) * 2
    first = NeuronState()
    start = lif(x[:4], first)
    in_pieces = torch.cat([start, lif(x[4:], NeuronState(first.after))])
    assert torch.equal(in_pieces, lif(x, NeuronState()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_lif_is_spikingjellys_with_gradients(dtype: torch.dtype, threshold: float) -> None:
    """Our way keeps one tensor for the backward pass; spikingjelly's own autograd is the reference."""
    torch.manual_seed(0)
    lif, results = LIF(threshold), []
    for reference in (False, True):
        x = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(1)).mul(2).to(dtype).requires_grad_()
        v = torch.rand(2, 7, generator=torch.Generator().manual_seed(2)).requires_grad_()
        if reference:
            spikes, after, _ = functional.lif_multi_step(
                x, v, tau=2.0, v_threshold=threshold, v_reset=0.0, surrogate_function=SURROGATE, detach_reset=True
            )
        else:
            neuron_state = NeuronState({lif: v})
            spikes, after = lif(x, neuron_state), neuron_state.after[lif]
        weights = torch.linspace(-1, 1, spikes.numel()).view_as(spikes)
        ((spikes * weights).sum() + (after * weights[0]).sum()).backward()
        results.append((spikes.float(), after, x.grad.float(), v.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)


# --- inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("segments", [1, 2])
def test_an_image_is_the_event_sequence_that_repeats_it(backbone: str, segments: int) -> None:
    """The stem is computed once for an image, and statistics are still those of all its copies: logits, gradients, buffers."""
    results = []
    for repeated in (False, True):
        torch.manual_seed(0)
        model = TDFormer(small(backbone, segments=segments)).double().train()
        x = images(3, 32, 48).double()
        logits = model.forward_segments(x.expand(4, *x.shape) if repeated else x)
        logits.square().sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append([logits, *gradients, *model.buffers()])
    for once, repeated_values in zip(*results, strict=True):
        torch.testing.assert_close(once, repeated_values, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 5), st.integers(1, 4), st.floats(0.01, 1), st.integers(2, 6))
@settings(max_examples=30)
def test_statistics_of_repeated_values_are_those_of_the_copies(steps: int, segments: int, momentum: float, batch: int) -> None:
    torch.manual_seed(0)
    once, copies = (nn.BatchNorm2d(3, momentum=momentum).double() for _ in range(2))
    y = torch.randn(batch, 3, 2, 1, dtype=torch.float64)
    ours = batch_norm_of_repeated(once, y, steps, segments)
    for _ in range(segments):
        theirs = copies(y.repeat(steps, 1, 1, 1))
    torch.testing.assert_close(ours, theirs[:batch])
    for own, expected in zip(once.buffers(), copies.buffers(), strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("fused", [False, True])
def test_a_stem_whose_batch_norm_rests_or_was_replaced_is_called_as_it_is(fused: bool) -> None:
    x = images(2)
    for norm in (nn.Identity(), FrozenBatchNormAct2d(4, apply_act=False), nn.BatchNorm2d(4, track_running_stats=False)):
        torch.manual_seed(0)
        model = TDFormer(small("qkformer-imagenet", time_steps=1, segments=1, feedback=None))
        lively(model)
        model.backbone.patch_stem.first.norm = norm
        model.use_fused_kernels(fused)
        frames = model.forward_features(x.expand(1, *x.shape))  # as an event sequence the stem runs in the usual way
        torch.testing.assert_close(model.forward_features(x), frames)


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("batches", [0, 3])
def test_a_stem_with_cumulative_statistics_counts_each_segment(segments: int, batches: int) -> None:
    """momentum None is torch's mean over all batches."""
    y, once = torch.randn(4, 3, 5, 5), nn.BatchNorm2d(3, momentum=None)
    for _ in range(batches):
        once(torch.randn(4, 3, 5, 5))
    copies = copy.deepcopy(once)
    batch_norm_of_repeated(once, y, steps=2, segments=segments)
    for _ in range(segments):
        copies(y.repeat(2, 1, 1, 1))
    assert once.momentum is None
    for own, expected in zip(once.buffers(), copies.buffers(), strict=True):
        torch.testing.assert_close(own, expected)


def test_time_steps_and_segments_are_changed_by_a_method_that_checks() -> None:
    torch.manual_seed(0)
    model = TDFormer(small(loss_weights=(0.4, 0.6)))
    lively(model)
    model.train()(images(2))
    model.eval().set_time_steps(6, 3)
    longer = TDFormer(small(time_steps=6, segments=3)).eval()
    longer.load_state_dict(model.state_dict())
    assert torch.equal(model.forward_segments(images(2)), longer.forward_segments(images(2)))
    assert model.config == longer.config
    assert model.backbone(images(2)).shape == (2, 5)
    model.set_time_steps(9)
    assert (model.time_steps, model.segments) == (9, 3)
    with pytest.raises(UserError, match="must be a multiple of segments, got 5 time steps and 3 segments"):
        model.set_time_steps(5)
    assert (model.time_steps, model.segments) == (9, 3)
    with pytest.raises(AttributeError):
        model.time_steps = 5  # type: ignore[misc]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_event_sequences_and_non_square_images_go_through(backbone: str) -> None:
    config = small(BACKBONES[backbone].model_copy(update={"in_channels": 2}), time_steps=6, segments=3)
    model, stride = TDFormer(config).eval(), config.backbone.stride
    for x in (images(2, 64, 32, channels=2, frames=6), images(2, 32, 80, channels=2)):
        features = model.forward_features(x)
        assert features.shape == (6, 2, 32, x.shape[-2] // stride, x.shape[-1] // stride)
        assert torch.equal(model.forward_head(features), model.forward_segments(x)[-1])


def test_frames_at_different_times_matter() -> None:
    torch.manual_seed(0)
    model = TDFormer(small())
    lively(model)
    x = images(2, 64, 64, frames=4)
    model.train()(x)
    assert not torch.equal(model.eval()(x), model(x.flip(0)))


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((1, 3, 40, 32), r"multiples of 16, got \(40, 32\)"),
        ((4, 1, 3, 32, 24), r"multiples of 16, got \(32, 24\)"),
        ((1, 2, 32, 32), r"images \[B, 3, H, W\] or event sequences \[T, B, 3, H, W\], got \[1, 2, 32, 32\]"),
        ((3, 1, 3, 32, 32), "must have time_steps = 4 frames, got 3"),
        ((3, 32, 32), r"got \[3, 32, 32\]"),
        ((0, 3, 32, 32), "got an empty batch"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TDFormer(small())(torch.zeros(shape))


# --- mixed precision ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tdformer_hst4_384", "tdformer_spikformer4_384", "tdformer_sdt2_256"])
def test_a_bf16_steps_loss_is_within_two_percent_of_fp32s(name: str) -> None:
    """The real CIFAR networks: rounding flips single spikes, which small networks do not average out."""
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = create_model(name, init_std=0.02)
        weights, labels = model.config.segment_loss_weights(), torch.arange(16) % 10
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model.forward_segments(images(16)).float()
        losses.append(sum(weight * nn.functional.cross_entropy(own, labels).item() for weight, own in zip(weights, logits, strict=True)))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("backbone", ["qkformer-imagenet", "spikformer-cifar", "sdt-imagenet"])
def test_autocast_leaves_membranes_thresholds_and_statistics_in_fp32(backbone: str) -> None:
    torch.manual_seed(0)
    model = TDFormer(small(backbone, feedback=FeedbackConfig(processing="v3", init_std=0.3)))
    dtypes = set()
    for module in model.modules():
        if isinstance(module, LIF | ParametricLIF):
            module.register_forward_hook(lambda module, inputs, spikes: dtypes.update(v.dtype for v in inputs[1].after.values()))
    with torch.autocast("cpu", torch.bfloat16):
        model(images(2)).float().sum().backward()
    assert dtypes == {torch.float32}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32, torch.int64}
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_config_of_one_time_step_per_segment_is_the_papers_first_granularity() -> None:
    model = TDFormer(ModelConfig(**{**small().model_dump(), "segments": 4}))
    assert model.forward_segments(images(2)).shape == (4, 2, 5)
