"""Spiking neurons with explicit state, on spikingjelly's kernels."""

from __future__ import annotations

from typing import Any

import spikingjelly._ops.lif  # noqa: F401  # registers torch.ops.sj_lif
import torch
from spikingjelly.activation_based import functional, surrogate
from torch import nn

from tdformer.models.kernels import fused, operators
from tdformer.models.kernels.constants import ALPHA, TAU, V_RESET
from tdformer.models.neuron_state import NeuronState, zero_potentials

SURROGATE = surrogate.Sigmoid(alpha=ALPHA)


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons over all time steps of a segment.

    tau is 2.0. The reset is hard, to 0, and has no gradient. The input is decayed. The surrogate is a sigmoid with alpha 4. The public code
    of all three backbones has these constants.
    """

    def __init__(self, v_threshold: float = 1.0) -> None:
        super().__init__()
        self.v_threshold = v_threshold
        self.fused = False
        """True if the neurons run as one kernel with the BatchNorm before them; false if they run step by step (the plain path)."""

    def forward(self, x_TB: torch.Tensor, neuron_state: NeuronState, norm: nn.Module | None = None) -> torch.Tensor:
        """Return spikes (0 or 1) in the shape and dtype of x.

        x_TB: currents [T, B, …]; with `norm` the input of that BatchNorm, [T, B, C, …].
        """
        v_B = neuron_state.start(self)
        if norm is not None and not self.takes_in(norm, x_TB):
            x_TB, norm = norm(x_TB.flatten(0, 1)).unflatten(0, x_TB.shape[:2]), None
        if self._is_one_kernel(x_TB):
            spikes_TB, v_B = fused.lif(x_TB, v_B, self.v_threshold, neuron_state.carried, norm)
        else:
            steps = _reference_steps if x_TB.dtype == torch.float64 else _LIFSteps.apply
            spikes_TB, v_B = steps(x_TB, zero_potentials(x_TB) if v_B is None else v_B, self.v_threshold)
        neuron_state.leave(self, v_B)
        return spikes_TB

    def takes_in(self, norm: nn.Module, x_TB: torch.Tensor) -> bool:
        """Tell whether the neurons' kernel does the work of that BatchNorm too."""
        return self._is_one_kernel(x_TB) and fused.takes(norm)

    def _is_one_kernel(self, x_TB: torch.Tensor) -> bool:
        return self.fused and len(x_TB) <= operators.MOST_STEPS

    def extra_repr(self) -> str:
        return f"tau={TAU}, v_threshold={self.v_threshold}"


class ParametricLIF(nn.Module):
    """LIF neurons with one learnt tau per layer: 1/tau = sigmoid(w). It starts at 2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.0))

    def forward(self, x_TB: torch.Tensor, neuron_state: NeuronState) -> torch.Tensor:
        """Return spikes (0 or 1) in the shape and dtype of the currents x [T, B, …]."""
        v_B = neuron_state.start(self)
        spikes_TB, v_B, _ = functional.plif_multi_step(
            x_TB,
            zero_potentials(x_TB) if v_B is None else v_B,
            self.w,
            decay_input=True,
            v_reset=V_RESET,
            surrogate_function=SURROGATE,
            detach_reset=True,
        )
        neuron_state.leave(self, v_B)
        return spikes_TB


def _reference_steps(x_TB: torch.Tensor, v_B: torch.Tensor, v_threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the neurons by spikingjelly's own autograd, at any precision. It keeps two tensors of x's size for the backward pass."""
    spikes_TB, v_B, _ = functional.lif_multi_step(
        x_TB,
        v_B,
        tau=TAU,
        decay_input=True,
        v_threshold=v_threshold,
        v_reset=V_RESET,
        surrogate_function=SURROGATE,
        detach_reset=True,
    )
    return spikes_TB, v_B


class _LIFSteps(torch.autograd.Function):
    """Runs the neurons on spikingjelly's kernels, and keeps one tensor for the backward pass: the potential before each reset."""

    @staticmethod
    def forward(ctx: Any, x_TB: torch.Tensor, v_B: torch.Tensor, v_threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
        # tau, decay_input, threshold, reset, detach_reset, alpha, store_v_seq (a potential for each step), surrogate (0: sigmoid)
        ctx.constants = (TAU, True, v_threshold, V_RESET, True, SURROGATE.alpha, False, 0)
        spikes_TB, v_B, charged_TB = torch.ops.sj_lif.forward(x_TB, v_B, *ctx.constants)
        ctx.save_for_backward(charged_TB)
        ctx.dtype = x_TB.dtype
        ctx.set_materialize_grads(False)
        return spikes_TB, v_B

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        grad_spikes_TB, grad_v_B = gradients
        (charged_TB,) = ctx.saved_tensors
        if grad_spikes_TB is None:
            grad_spikes_TB = torch.zeros_like(charged_TB, dtype=ctx.dtype)
        if grad_v_B is None:
            grad_v_B = torch.zeros_like(charged_TB[0])
        return *torch.ops.sj_lif.backward(grad_spikes_TB, grad_v_B, charged_TB, *ctx.constants), None
