"""Makes random draws a function of a key, and keeps them apart from the rest of the program."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_rng(*key: int) -> None:
    """Seed the three global generators (random, NumPy and torch's CPU generator) with a key.

    timm's and torchvision's transforms draw from all three.
    """
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    # torch.manual_seed would also seed every device, which takes a hundred times as long
    torch.default_generator.manual_seed(int(words[2]))


@contextmanager
def fork_rng() -> Iterator[None]:
    """Restore the states of the three global generators at the end, whatever is drawn or seeded inside."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
