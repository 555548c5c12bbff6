"""The operations of every layer are those that spikingjelly counts. Energies follow from them by the two conventions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter

from tdformer.analysis.energy import AC_PJ, MAC_PJ, Layer, Meter, measure
from tdformer.distributed.context import DistContext
from tdformer.models.tdformer import TDFormer
from tests.unit.analysed import alone, parts_of
from tests.unit.networks import BACKBONES, IMAGE_SIZE, images, lively, small

T = 4


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    with alone() as context:
        yield context


def trained(name: str, **changes: object) -> tuple[TDFormer, torch.Tensor]:
    """A network whose neurons fire, and its input."""
    torch.manual_seed(0)
    model, size = lively(TDFormer(small(name, time_steps=T, **changes))), IMAGE_SIZE[name]
    assert isinstance(model, TDFormer)
    x = images(6, size, size)
    model.train()(x)
    return model.eval(), x


def layers_of(model: TDFormer, x: torch.Tensor, context: DistContext) -> list[Layer]:
    meter = Meter(model)
    with torch.no_grad(), meter.measuring():
        meter.begin_pass()
        model(x)
    return meter.layers(len(x), context)


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_operations_are_those_that_spikingjelly_counts(context: DistContext, name: str, feedback: bool) -> None:
    model, x = trained(name) if feedback else trained(name, feedback=None)
    layers = [layer for layer in layers_of(model, x, context) if layer.name != "processing.product"]
    additions, multiplications = SynOpCounter(), MACCounter()
    with torch.no_grad(), DispatchCounterMode([additions, multiplications]):
        model.forward_features(x)
    assert sum(layer.operations for layer in layers if layer.is_binary) * len(x) == pytest.approx(additions.get_total(), rel=1e-9)
    of_synapses = sum(count for op, count in multiplications.get_counts()["Global"].items() if "convolution" in str(op) or "mm" in str(op))
    assert sum(layer.macs for layer in layers if not layer.is_binary) * len(x) == pytest.approx(of_synapses, rel=1e-9)
    assert sum(layer.operations for layer in layers if layer.is_binary) > 0


def test_every_layer_is_counted_in_each_segment(context: DistContext) -> None:
    model, x = trained("qkformer-imagenet")
    layers = layers_of(model, x, context)
    by_segment = {segment: {layer.name for layer in layers if layer.segment == segment} for segment in (None, 1, 2)}
    (stem,) = by_segment[None]
    assert next(layer for layer in layers if layer.is_first).name == stem
    assert by_segment[2] - by_segment[1] == {name for name in by_segment[2] if name.endswith("control.td_conv")} != set()
    assert by_segment[1] - by_segment[2] == {"processing.mixer", "processing.product"}


def test_frames_of_events_are_read_in_every_segment(context: DistContext) -> None:
    torch.manual_seed(0)
    model = TDFormer(small("sdt-cifar10dvs", time_steps=T)).eval()
    first = [layer for layer in layers_of(model, images(2, 64, 64, frames=T)[:, :2], context) if layer.is_first]
    assert [layer.segment for layer in first] == [1, 2]


def test_energies_follow_from_the_counts() -> None:
    first = Layer("stem", None, True, False, macs=1e6, rate=0.9, operations=9e5)
    spikes, sums = (Layer("k", 1, False, binary, macs=1e6, rate=0.2, operations=1.9e5) for binary in (True, False))
    assert first.paper_mj == first.strict_mj == pytest.approx(MAC_PJ * 1e-3)
    assert spikes.paper_mj == sums.paper_mj == pytest.approx(AC_PJ * 0.2e-3)
    assert spikes.strict_mj == pytest.approx(AC_PJ * 0.19e-3)
    assert sums.strict_mj == pytest.approx(MAC_PJ * 1e-3)


def test_batches_and_their_sizes_change_nothing(context: DistContext) -> None:
    model, x = trained("qkformer-cifar")
    whole, cut = (measure(model, parts_of(x, batch), context) for batch in (6, 4))
    assert cut["paper_mj"] == pytest.approx(whole["paper_mj"])
    assert [layer["operations"] for layer in cut["layers"]] == pytest.approx([layer["operations"] for layer in whole["layers"]])
    assert sum(segment["strict_mj"] for segment in whole["segments"]) == pytest.approx(whole["strict_mj"])
    assert 0 < whole["topdown_paper_mj"] < whole["paper_mj"]
