"""What DeepSpeedInsides needs of DeepSpeed. A failure here says which part of it another version has changed."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import version
from types import ModuleType

import pytest

from tdformer.training import deepspeed_insides
from tdformer.training.deepspeed_insides import import_deepspeed

ENGINE = "deepspeed.runtime.engine"
ZERO_1_2, ZERO_3 = "deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.zero.stage3"

FRAGMENTS, PARTITIONS = "deepspeed.utils.tensor_fragment", "deepspeed.runtime.zero.partition_parameters"

WORDS = {
    "enable_backward_allreduce": (ENGINE, "ExactReduction cannot switch off the sum of gradients at ZeRO 0"),
    "def average_tensor(": (ZERO_1_2, "ExactReduction cannot switch off the sum of gradients at ZeRO 1 and 2"),
    "self.average_tensor(": (ZERO_1_2, "ExactReduction cannot switch off the sum of gradients at ZeRO 1 and 2"),
    "def __avg_scatter_grads(": (ZERO_3, "ExactReduction cannot switch off the sum of gradients at ZeRO 3"),
    "def _get_norm_groups(": (ZERO_3, "ExactReduction cannot switch off the gradient norm at ZeRO 3"),
    "def get_lp_grad_fragment(": (FRAGMENTS, "ExactReduction cannot set gradients at ZeRO 1 and 2"),
    "_index_in_param_group": (FRAGMENTS, "ExactReduction cannot set gradients at ZeRO 1 and 2"),
    "single_partition_of_fp32_groups": (ZERO_1_2, "the optimizer's state at ZeRO 1 and 2 is not found"),
    "        all_gather_dp_groups(": (ZERO_1_2, "the gather of parameters at ZeRO 1 and 2 cannot go on during the forward pass"),
    "if is_invalid_grad_norm(clip_norm)": (ZERO_1_2, "nobody knows how often the host waits for the norm when gradients are clipped"),
    "bit16_groups_flat": (ZERO_1_2, "the gather of parameters at ZeRO 1 and 2 cannot go on during the forward pass"),
    "def _lazy_init_hp_params_optimizer_state(": (ZERO_1_2, "moments are not linked to parameters at ZeRO 1 and 2"),
    "fp32_partitioned_groups_flat": (ZERO_3, "the optimizer's state at ZeRO 3 is not found"),
    "parameter_offload": (ZERO_3, "averaged weights cannot be put in at ZeRO 3"),
    "_hp_mapping": (FRAGMENTS, "parts of moments at ZeRO 1 and 2 are not found, so that no checkpoint can be saved"),
    "lp_fragment_address": (FRAGMENTS, "parts of moments at ZeRO 1 and 2 are not found, so that no checkpoint can be saved"),
    "def get_hp_fragment(": (FRAGMENTS, "parts of moments at ZeRO 1 and 2 are not found, so that no checkpoint can be saved"),
    "hp_fragment_address: fragment_address": (FRAGMENTS, "LAMB does not find its parts of parameters at ZeRO 1 and 2"),
    "self.grad_position[self.get_param_id(": (ZERO_3, "LAMB does not find its parts of parameters at ZeRO 3"),
    "param.ds_tensor": (PARTITIONS, "parts of parameters at ZeRO 3 are not found"),
    "persistent_parameters": (ZERO_3, "averaged weights cannot be put in at ZeRO 3"),
}
BY_BOTH = {
    "self._global_grad_norm = ": "FastReduction does not find the gradient norm",
    "self.overflow = True": "FastReduction does not notice a step that was dropped",
    "loss_scale = property(": "FastReduction cannot set the loss scale of fp16",
}


@pytest.fixture(scope="module")
def deepspeed() -> ModuleType:
    return import_deepspeed()


def source(module: str) -> str:
    return inspect.getsource(importlib.import_module(module))


NEEDED = [(word, module, lost) for word, (module, lost) in WORDS.items()] + [
    (word, module, lost) for word, lost in BY_BOTH.items() for module in (ZERO_1_2, ZERO_3)
]


@pytest.mark.parametrize(("word", "module", "lost"), NEEDED)
def test_deepspeed_still_has_it(word: str, module: str, lost: str, deepspeed: ModuleType) -> None:
    assert word in source(module), f"DeepSpeed {version('deepspeed')} has no {word!r} in {module}: {lost}"


SETTERS = [f"safe_set_{part}" for part in ("local_grad", "full_optimizer_state", "local_optimizer_state")]


@pytest.mark.parametrize("name", [*SETTERS, "safe_get_local_optimizer_state"])
def test_deepspeed_still_sets_parts_of_single_parameters(name: str, deepspeed: ModuleType) -> None:
    assert hasattr(deepspeed.utils, name), f"DeepSpeed {version('deepspeed')} has no deepspeed.utils.{name}"


@pytest.mark.parametrize(
    ("found", "is_tried"), [("0.19.7", False), ("0.19.8", True), ("0.19.11+cu130", True), ("0.20.0", False), ("1.0", False)]
)
def test_a_version_that_was_not_tried_is_a_warning(found: str, is_tried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_insides, "version", lambda name: found)
    notes = deepspeed_insides.note_on_version()
    assert is_tried == (not notes)
    assert all(f"warning: DeepSpeed {found} was not tried" in note for note in notes)
