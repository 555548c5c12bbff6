"""Activation checkpointing over time steps and blocks (the configuration key `training.recompute`).

A unit is a piece of the network that runs on one segment: the whole segment, or one block of it. Under a policy that recomputes, autograd
records the unit as always, but keeps none of its inner tensors. Only the unit's inputs are kept:

    policy          unit              kept
    none            -                 everything
    segment         whole segment     its frames, the top-down spikes, the neuron state at its border
    block           block x segment   the block's input; the block runs again from the first segment on to find its neuron state
    block_segment   block x segment   the block's input, and the neuron state at the segment's border

When the backward pass reaches a unit, the unit runs once more from those inputs, and its inner tensors go to the nodes of the first run's
graph. That graph is the one of policy `none`. Therefore gradients are added in the same order, and every bit is the same. A rerun leaves
BatchNorm's statistics alone, and repeats the random draws.

spikingjelly's compressors keep sums of spikes as uint8 and spikes as bits. Currents and potentials are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from spikingjelly.activation_based.memopt import BitSpikeCompressor, Uint8SpikeCompressor
from torch import nn

from tdformer.config import RecomputePolicy
from tdformer.models.checkpointing.replay_state import CHANGED, ReplayState
from tdformer.models.neuron_state import NeuronState

Run = Callable[[torch.Tensor, torch.Tensor | None, NeuronState], tuple[torch.Tensor | None, ...]]
"""Runs a piece of the network: (x, top-down spikes or None, neuron state) -> results."""


Part = Literal["stem", "segment", "block"]
UNITS: dict[RecomputePolicy, tuple[Part, ...]] = {
    "none": (),
    "segment": ("stem", "segment"),
    "block": ("stem", "block"),
    "block_segment": ("stem", "block"),
}
"""The parts of the network that each policy runs as units. The stem comes before the first neurons, and runs once for an image."""
FRACTIONS = (
    "a block handed on something else than whole numbers from 0 to 255, as sums of spikes are; recompute keeps those in bytes: "
    "use the recompute policy segment or none with blocks of your own"
)


def check_exact(flag: torch.Tensor) -> None:
    """Raise RuntimeError unless the flag is set. The host waits for the device. The meta device has no values, and passes."""
    if not flag.is_meta and not flag:
        raise RuntimeError(FRACTIONS)


class ActivationCheckpointing:
    """Applies a policy to one forward pass.

    kept_exactly: a list that gets one flag, a bool tensor [], for each input that is kept in bytes: whether the bytes hold it exactly. The
    caller has to look at them. None: each rerun looks at its own flag, for which the host waits for the device.
    """

    def __init__(self, policy: RecomputePolicy, kept_exactly: list[torch.Tensor] | None = None) -> None:
        self.policy, self._kept_exactly = policy, kept_exactly
        self._last_runs: dict[nn.Module, _Node] = {}

    def run(
        self,
        part: Part,
        run: Run,
        module: nn.Module,
        x: torch.Tensor,
        topdown: torch.Tensor | None,
        neuron_state: NeuronState,
        *,
        integers: bool = False,
    ) -> tuple:
        """Return run(x, topdown, neuron_state), run as a unit if the policy says so.

        module: holds all layers that `run` uses. integers: True if x holds only whole numbers from 0 to 255.
        """
        if part not in UNITS[self.policy] or not torch.is_grad_enabled():
            return run(x, topdown, neuron_state)
        unit = _Unit(run, module, integers, neuron_state.carried, self.policy != "block", self._last_runs.get(module))
        results, node = _run_as_unit(unit, x, topdown, neuron_state)
        if self._kept_exactly is not None and unit.is_exact is not None:
            self._kept_exactly.append(unit.is_exact)
            unit.is_exact = None
        if self.policy == "block":  # only then, because `run` may hold this object, and that circle would keep all inputs
            self._last_runs[module] = node
        return results


class _Unit:
    """Holds one run of a piece of the network, and repeats it."""

    def __init__(self, run: Run, module: nn.Module, integers: bool, carries_state: bool, keeps_state: bool, previous: _Node | None) -> None:
        self.run, self.previous = run, previous
        self.carries_state, self.keeps_state = carries_state, keeps_state
        self.x_form = _Form(Uint8SpikeCompressor() if integers else None)
        self.topdown_form = _Form(BitSpikeCompressor())
        self.state_forms: dict[nn.Module, _Form] = {}
        self.replay_state = ReplayState(module)
        # BatchNorm saves its buffers beside its input. Buffers are no inner tensors, and a rerun does not produce them.
        self.buffers = {_storage(buffer) for buffer in module.buffers()}
        self.kept_outside_graph: tuple[torch.Tensor | None, ...] = ()
        """The kept inputs, if nothing in this run is trained: autograd keeps none for a node outside its graph. A later segment's run, in
        which the top-down weights are trained, may need this run's neuron state."""
        self.is_exact: torch.Tensor | None = None
        self.forms: list[tuple[torch.Size, torch.dtype]] = []
        self.inner: dict[int, torch.Tensor] = {}

    def first_run(self, x: torch.Tensor, topdown: torch.Tensor | None, neuron_state: NeuronState) -> tuple:
        with torch.autograd.graph.saved_tensors_hooks(self._leave_out, self._hand_out), self.replay_state.recording_rng():
            return self.run(x, topdown, neuron_state)

    def keep(self, x: torch.Tensor, topdown: torch.Tensor | None, before: dict[nn.Module, torch.Tensor]) -> list[torch.Tensor | None]:
        """Return the unit's inputs in the form in which they are kept."""
        self.state_forms = {neurons: _Form(None) for neurons in before}
        kept = [self.x_form.compress(x), self.topdown_form.compress(topdown)]
        for neurons, form in self.state_forms.items():
            value = form.compress(before[neurons])
            kept.append(value if self.keeps_state else None)
        self.is_exact = None if self.x_form.compressor is None else (self.x_form.restore(kept[0]) == x).all()
        return kept

    def run_again(self, kept: tuple[torch.Tensor | None, ...]) -> None:
        """Run the unit again, and fill the places of its inner tensors.

        Raises RuntimeError if the network is not what it was in the first run.
        """
        if self.is_exact is not None:  # It is looked at only now, so that the forward pass does not wait for the GPU.
            check_exact(self.is_exact)
        self.inner, forms = {}, self.forms
        self.forms = []
        with torch.enable_grad():
            inputs = self._inputs(kept, self.carries_state)
            with self.replay_state.again(), torch.autograd.graph.saved_tensors_hooks(self._fill, self._no_second):
                self.run(*inputs)
        if self.forms != forms:
            raise RuntimeError(CHANGED)

    def _state_after(self, kept: tuple[torch.Tensor | None, ...]) -> Mapping[nn.Module, torch.Tensor | None]:
        with torch.no_grad():
            x, topdown, neuron_state = self._inputs(kept, carries_state=True)
            with self.replay_state.again():
                self.run(x, topdown, neuron_state)
        return neuron_state.after

    def _inputs(self, kept: tuple[torch.Tensor | None, ...], carries_state: bool) -> tuple[Any, torch.Tensor | None, NeuronState]:
        x, topdown, *neuron_state = kept
        if self.keeps_state or not self.state_forms:
            before: Mapping[nn.Module, torch.Tensor | None] = dict(zip(self.state_forms, neuron_state, strict=True))
        else:
            assert self.previous is not None
            unit = self.previous.unit
            before = unit._state_after(unit.kept_outside_graph or self.previous.saved_tensors)
        restored = {neurons: form.restore(before[neurons]) for neurons, form in self.state_forms.items()}
        return self.x_form.restore(x), self.topdown_form.restore(topdown), NeuronState(restored, carried=carries_state)

    # --- hooks of autograd ------------------------------------------------------------------------------------------

    def _leave_out(self, tensor: torch.Tensor) -> torch.Tensor | int:
        if _storage(tensor) in self.buffers:
            return tensor
        self.forms.append((tensor.shape, tensor.dtype))
        return len(self.forms) - 1

    def _hand_out(self, place: torch.Tensor | int) -> torch.Tensor:
        return self.inner.pop(place) if isinstance(place, int) else place

    def _fill(self, tensor: torch.Tensor) -> None:
        if _storage(tensor) not in self.buffers:
            self.inner[len(self.forms)] = tensor
            self.forms.append((tensor.shape, tensor.dtype))

    @staticmethod
    def _no_second(place: None) -> torch.Tensor:
        raise AssertionError("a rerun's own graph has no backward pass")


def _storage(tensor: torch.Tensor) -> int:
    """Return a key that tells storages apart, on the meta device too."""
    return tensor.untyped_storage()._cdata


class _Form:
    """Compresses one input of a unit, and restores it."""

    def __init__(self, compressor: Uint8SpikeCompressor | BitSpikeCompressor | None) -> None:
        self.compressor = compressor
        self.requires_grad = False
        self.axes: list[int] = []
        """The axes from the widest stride to the narrowest. By them a tensor comes back in the memory layout that it had."""
        self.rest: tuple[Any, ...] = ()

    def compress(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        self.requires_grad = tensor.requires_grad
        if self.compressor is None:
            return tensor.detach()
        self.axes = sorted(range(tensor.dim()), key=tensor.stride().__getitem__, reverse=True)
        values, *rest = self.compressor.compress(tensor.detach().permute(self.axes))
        self.rest = tuple(rest)
        return values

    def restore(self, values: torch.Tensor | None) -> Any:
        if values is None:
            return None
        restored = values.detach()
        if self.compressor is not None:
            in_order = self.compressor.decompress((values, *self.rest))
            restored = in_order.permute([self.axes.index(axis) for axis in range(in_order.dim())])
        return restored.requires_grad_(self.requires_grad and torch.is_grad_enabled())


class _Node(torch.autograd.Function):
    """Is the graph's node behind a unit's results. It keeps the inputs, and runs the unit again before its inner nodes are reached."""

    unit: _Unit

    @staticmethod
    def forward(ctx: Any, unit: _Unit, nodes: list, kept: list[torch.Tensor | None], *results: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.unit = unit
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*kept)
        else:
            unit.kept_outside_graph = tuple(kept)
        ctx.set_materialize_grads(False)
        nodes.append(ctx)
        return tuple(result.view_as(result) for result in results)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("second derivatives (create_graph=True) need the recompute policy none")
        ctx.unit.run_again(ctx.saved_tensors)
        return None, None, None, *gradients


@torch.compiler.disable  # hooks on saved tensors work in eager mode only; the modules that a unit runs may still be compiled
def _run_as_unit(unit: _Unit, x: torch.Tensor, topdown: torch.Tensor | None, neuron_state: NeuronState) -> tuple[tuple, _Node]:
    own = NeuronState(neuron_state.before, carried=neuron_state.carried)
    results = unit.first_run(x, topdown, own)
    before = {neurons: neuron_state.before[neurons] for neurons in own.started if neurons in neuron_state.before}
    nodes: list[_Node] = []
    tensors = [result for result in results if result is not None]
    passed = iter(_Node.apply(unit, nodes, unit.keep(x, topdown, before), *tensors, *own.after.values()))
    results = tuple(None if result is None else next(passed) for result in results)
    neuron_state.after.update(zip(own.after, passed, strict=True))
    neuron_state.started += own.started
    return results, nodes[0]
