"""DeepSpeedInsides: the one file that knows DeepSpeed's private attributes, and what differs between its ZeRO stages.

Tried with DeepSpeed 0.19.8. `tests/unit/test_deepspeed_insides.py` says in plain words what another version has changed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tdformer.distributed.context import DistContext
from tdformer.training.lamb import Share
from tdformer.training.optimizer import MOMENTS, set_steps
from tdformer.training.parameter_gather import Flat
from tdformer.training.reduction.gradient_layout import full_shape
from tdformer.training.sharded_tensors import Part

FIRST_TRIED, FIRST_UNTRIED = (0, 19, 8), (0, 20)


class DeepSpeedInsides:
    """DeepSpeed's engine and optimizer at one ZeRO stage: gradients, moments and partitions of single parameters."""

    def __init__(self, engine: Any, optimizer: Any, zero_stage: int, context: DistContext) -> None:
        import deepspeed

        self.engine, self.optimizer, self.zero_stage, self.context = engine, optimizer, zero_stage, context
        self.start_gather: Callable[[], None] | None = None
        """This gathers parameters after a step at ZeRO 1 and 2, in place of DeepSpeed's own function. None: DeepSpeed does."""
        self._utils = deepspeed.utils
        self._gathered_parameters = deepspeed.zero.GatheredParameters

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that DeepSpeed's own one steps."""
        return self.optimizer if self.zero_stage == 0 else self.optimizer.optimizer

    # --- gradients and the step ------------------------------------------------------------------------------

    def switch_off_reduction(self) -> None:
        """Switch off DeepSpeed's own reduction, which would add up zeros, and the norm of ZeRO 3, for which the host waits."""
        if self.zero_stage == 0:
            self.engine.enable_backward_allreduce = False
        elif self.zero_stage in (1, 2):
            self.optimizer.average_tensor = lambda tensor, communication_data_type: None
        else:
            self.optimizer._DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads = _own_zeros
            self.optimizer._get_norm_groups = lambda: [torch.zeros(())]

    def kept_span(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Return the elements [start, end) of a parameter that this rank's optimizer steps."""
        size = full_shape(parameter).numel()
        if self.zero_stage == 0:
            return 0, size
        if self.zero_stage == 3:
            length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # put there by ZeRO 3
            return min(self.context.rank * length, size), min((self.context.rank + 1) * length, size)
        if (fragment := parameter._hp_mapping) is None:  # type: ignore[attr-defined]  # put there by ZeRO 1 and 2
            return 0, 0
        address = fragment.lp_fragment_address
        return address.start, address.start + address.numel

    def set_kept_gradient(self, parameter: nn.Parameter, values: torch.Tensor) -> None:
        """Give the optimizer the gradient of the elements of `kept_span`, float32 and flat."""
        if self.zero_stage == 0:
            parameter.grad = values.view_as(parameter)
        elif self.zero_stage == 3:
            length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            self._utils.safe_set_local_grad(parameter, nn.functional.pad(values, (0, length - len(values))))
        else:
            fragment = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)  # type: ignore[attr-defined]
            fragment.copy_(values.view_as(fragment))

    def step(self) -> None:
        """Step DeepSpeed's engine. Parameters of other ranks may still be on their way afterwards, if `start_gather` is set.

        At ZeRO 1 and 2, DeepSpeed asks whether the norm is finite, and again for each group of parameters that it clips. The host waits
        for the first answer, and takes it each time.
        """
        if self.zero_stage not in (1, 2):
            self.engine.step()
            return
        from deepspeed.runtime.zero import stage_1_and_2

        functions: dict[str, Callable[..., Any]] = {"is_invalid_grad_norm": cache(stage_1_and_2.is_invalid_grad_norm)}
        if (start := self.start_gather) is not None:
            functions["all_gather_dp_groups"] = lambda **arguments: start()
        with _replaced(stage_1_and_2, functions):
            self.engine.step()

    def flats(self) -> list[Flat]:
        """Return the tensors in which ZeRO 1 and 2 keep all parameters."""
        return [Flat(values, group) for values, group in zip(self.optimizer.bit16_groups_flat, self.optimizer.bit16_groups, strict=True)]

    def scaled(self, loss: torch.Tensor, scale: float) -> torch.Tensor:
        """Return the loss for the backward pass. `step_if_finite` takes the scale out of the gradients again."""
        if self.zero_stage == 0:
            return loss * scale
        self.optimizer.loss_scale = scale  # ZeRO 1 to 3 multiply by it themselves
        return loss

    def step_if_finite(self, trained: Sequence[nn.Parameter], scale: float, clip_grad: float | None) -> tuple[torch.Tensor | float, bool]:
        """Step the optimizer with the gradients that DeepSpeed has reduced, or drop them if their norm is not finite.

        trained: the parameters that are trained. Returns the norm before clipping, infinite or NaN for gradients that are dropped, and
        whether the step was taken. All ranks agree. Collective; the host waits for the norm.
        """
        if self.zero_stage:
            self.step()  # ZeRO 1 to 3 clip and drop themselves
            return self.optimizer._global_grad_norm, not self.optimizer.overflow
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        if scale != 1:
            torch._foreach_div_(gradients, scale)
        norm = nn.utils.get_total_norm(gradients)
        is_finite = bool(torch.isfinite(norm))
        if is_finite and clip_grad is not None:
            nn.utils.clip_grads_with_norm_(trained, clip_grad, norm)
        with nullcontext() if is_finite else self.resting_optimizer():
            self.engine.step()
        return norm, is_finite

    @contextmanager
    def resting_optimizer(self) -> Iterator[None]:
        """Keep DeepSpeed's step from changing parameters and moments inside. It still clears gradients and counts."""
        self.torch_optimizer.step = _no_step  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            del self.torch_optimizer.step

    # --- parameters ------------------------------------------------------------------------------------------

    @contextmanager
    def gathered(self, parameter: nn.Parameter) -> Iterator[None]:
        """Give a parameter its full values inside. Collective at ZeRO 3."""
        with self._gathered_parameters([parameter], enabled=self.zero_stage == 3):
            yield

    def own_tensor(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return what this rank keeps of a parameter: all of it, or at ZeRO 3 its part."""
        return parameter.ds_tensor if self.zero_stage == 3 else parameter  # type: ignore[attr-defined]

    def own_part(self, parameter: nn.Parameter, full: torch.Tensor) -> torch.Tensor:
        """Return the part that ZeRO 3 keeps on this rank of a tensor of the parameter's shape.

        DeepSpeed's own function fails where the part needs padding.
        """
        length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # put there by ZeRO 3
        padded = nn.functional.pad(full.flatten(), (0, length * self.context.world_size - full.numel()))
        return padded[self.context.rank * length :][:length]

    def forget_gathered(self) -> None:
        """Let ZeRO 3 forget parameters that are gathered, and gather anew those that stay so. Collective."""
        if self.zero_stage == 3:
            self.optimizer.parameter_offload.partition_all_parameters()
            if persistent := self.optimizer.persistent_parameters:
                persistent[0].all_gather(persistent)

    # --- the optimizer's state -------------------------------------------------------------------------------

    def partitions(self, trained: Sequence[nn.Parameter]) -> list[torch.Tensor]:
        """Return the tensors that this rank's optimizer steps: the trained parameters themselves, or its flat fp32 partitions of them."""
        if self.zero_stage == 0:
            return list(trained)
        if self.zero_stage == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        return list(self.optimizer.single_partition_of_fp32_groups)

    def make_optimizer_state(self, trained: Sequence[nn.Parameter]) -> None:
        """Make the moments, all zeros, now instead of in the first step.

        A resume needs a place to load into. Besides, DeepSpeed 0.19 links moments to parameters only once, after the step of the first
        parameter group, when the other groups have none yet.
        """
        partitions = self.partitions(trained)
        for partition in partitions:
            self.torch_optimizer.state[partition] = {moment: torch.zeros_like(partition) for moment in MOMENTS}
        set_steps(self.torch_optimizer, partitions, 0)
        if self.zero_stage in (1, 2):
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def shares(self, trained: Sequence[nn.Parameter]) -> dict[torch.Tensor, list[Share]]:
        """Return which elements of the tensors that this rank's optimizer steps are of which parameter."""
        partitions = self.partitions(trained)
        shares: dict[torch.Tensor, list[Share]] = {partition: [] for partition in partitions}
        for number, parameter in enumerate(trained):
            index, start, count = self._stepped_elements(number, parameter)
            if count:
                shares[partitions[index]].append(Share(number, start, start + count))
        return shares

    def _stepped_elements(self, number: int, parameter: nn.Parameter) -> tuple[int, int, int]:
        """Return where the elements of a parameter are that this rank's optimizer steps: in which partition, from where on, how many."""
        if self.zero_stage == 0:
            return number, 0, parameter.numel()
        if self.zero_stage == 3:
            return self.optimizer.grad_position[parameter.ds_id]  # type: ignore[attr-defined]  # put there by ZeRO 3
        if (fragment := parameter._hp_mapping) is None:  # type: ignore[attr-defined]  # put there by ZeRO 1 and 2
            return 0, 0, 0
        return fragment.param_group_index, fragment.hp_fragment_address.start, fragment.hp_fragment_address.numel

    def moment(self, parameter: nn.Parameter, moment: str) -> torch.Tensor:
        """Return a moment of a parameter at ZeRO 0, where every rank has all of it."""
        return self.optimizer.state[parameter][moment]

    def part_of_moment(self, name: str, parameter: nn.Parameter, moment: str) -> Part:
        """Return this rank's part of a moment at ZeRO 1 to 3. DeepSpeed's own function needs a collective for each tensor."""
        shape = full_shape(parameter)
        if self.zero_stage == 3:
            own = self._utils.safe_get_local_optimizer_state(parameter, moment).flatten()
            return Part(name, shape, min(self.context.rank * own.numel(), shape.numel()), own)
        if (fragment := parameter._hp_mapping) is None:  # type: ignore[attr-defined]  # put there by ZeRO 1 and 2
            return Part(name, shape, 0, torch.empty(0))
        return Part(name, shape, fragment.lp_fragment_address.start, fragment.get_hp_fragment(moment))

    def set_moment(self, parameter: nn.Parameter, moment: str, full: torch.Tensor) -> None:
        """Set a moment of a parameter, given in full."""
        full = full.to(self.context.device)
        if self.zero_stage == 0:
            self.moment(parameter, moment).copy_(full)
        elif self.zero_stage == 3:
            self._utils.safe_set_local_optimizer_state(parameter, self.own_part(parameter, full), moment)
        else:
            self._utils.safe_set_full_optimizer_state(parameter, full, moment)


def note_on_version() -> list[str]:
    """Return a warning for the user if this DeepSpeed was not tried with this project."""
    found = version("deepspeed")
    if FIRST_TRIED <= tuple(int(part) for part in found.split("+")[0].split(".")[:3] if part.isdigit()) < FIRST_UNTRIED:
        return []
    return [
        f"warning: DeepSpeed {found} was not tried with this version of tdformer, which uses private parts of it; install 0.19.8 "
        f"(pip install 'deepspeed>=0.19.8,<0.20'), or run tests/unit/test_deepspeed_insides.py."
    ]


@contextmanager
def keeping_torch_linear() -> Iterator[None]:
    """Undo at the end that ZeRO 3 replaces torch's linear function by its own, whose gradients are rounded differently."""
    linear = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = linear


def import_deepspeed() -> Any:
    """Import DeepSpeed without its log lines, its needless imports, and the C++ that it would compile at the first start.

    Its autotuner would import MLflow on every rank. Its Muon optimizer, which each engine looks for, would load torch's compiler.
    Together that is a third of all modules that a rank imports, and on a cluster every rank reads them from a shared file system.
    """
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with _left_out("mlflow"):
        import deepspeed
    from deepspeed.runtime import compiler
    from deepspeed.utils import logger

    compile_function, compiler.compile = compiler.compile, lambda: lambda function: function
    import deepspeed.runtime.zero.muon.original_muon  # its one compiled function stays a plain one; no recipe uses Muon

    compiler.compile = compile_function
    logger.setLevel(logging.ERROR)
    # A CPU kernel for inference that training never calls; building it would need a compiler on every node.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _replaced(module: ModuleType, functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace functions of a module within this context."""
    originals = {name: getattr(module, name) for name in functions}
    vars(module).update(functions)
    try:
        yield
    finally:
        vars(module).update(originals)


@contextmanager
def _left_out(module: str) -> Iterator[None]:
    """Let imports of a module fail within this context, unless it is loaded already."""
    absent: Any = None
    sys.modules.setdefault(module, absent)
    try:
        yield
    finally:
        if sys.modules[module] is None:
            del sys.modules[module]


def _own_zeros(parameters: list[nn.Parameter], communication_data_type: torch.dtype) -> list[torch.Tensor]:
    """Stand in for ZeRO 3's reduce-scatter of gradients that are zero: return this rank's parts of their sums."""
    return [torch.zeros_like(parameter.ds_tensor, dtype=torch.float32) for parameter in parameters]  # type: ignore[attr-defined]


def _no_step(closure: object = None) -> None:
    """Stand in for an optimizer's step, and do nothing."""
