"""Spares a process the search for garbage among the objects of imported packages, which are half a million and stay.

Python searches all of them again whenever a quarter more has come. That was a fifth of the time which a rank takes to start, and one
later search makes all ranks wait for half a second.
"""

from __future__ import annotations

import gc

USUAL = gc.get_threshold()
RARELY = (100_000, 10, 10)
"""New objects until a search among the new ones, and how many such searches go before a wider one."""


def search_rarely() -> None:
    """Search for garbage rarely from now on. A command calls this before it imports packages."""
    gc.set_threshold(*RARELY)


def search_among_new_objects() -> None:
    """Search once, then as often as Python does by itself, but only among objects that are made from now on.

    Training and evaluation call this before their first batch. What they make then, memory of the GPU included, is freed in time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*USUAL)
