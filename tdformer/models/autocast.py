"""The precision of a forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from tdformer.config import Precision

AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of autocast at each precision. fp32 has no autocast."""


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context for a forward pass at a precision."""
    return torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()
