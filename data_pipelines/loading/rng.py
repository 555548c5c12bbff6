"""TODO."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_rng(*key: int) -> None:
    """Make every random draw from here on a function of the key.

    timm's and torchvision's transforms draw from the three global generators (random, NumPy, torch).
    """
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))  # torch.manual_seed visits every device, which takes a hundred times as long


@contextmanager
def fork_rng() -> Iterator[None]:
    """Whatever is drawn or seeded inside, the three global generators go on afterwards as if it had not been."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
