"""Python searches for garbage rarely while a command starts, and in training among the objects that training makes."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from tdformer import garbage
from tests.conftest import REPOSITORY


class Cycle:
    """Garbage that only a search frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_a_start_is_not_interrupted_by_searches() -> None:
    gc.collect()  # else a wider search may be due already
    garbage.search_rarely()
    searches = gc.get_stats()[2]["collections"]
    kept = [[number] for number in range(300_000)]
    assert gc.get_stats()[2]["collections"] == searches
    assert len(kept) == 300_000


def test_training_frees_what_it_makes_and_never_searches_what_was_there() -> None:
    garbage.search_rarely()
    before = weakref.ref(Cycle())
    there = [[number] for number in range(100_000)]
    garbage.search_among_new_objects()
    assert before() is None, "garbage of the start is freed"
    assert gc.get_freeze_count() >= len(there)
    assert gc.get_threshold() == garbage.USUAL
    cycle = weakref.ref(Cycle())
    for _ in range(10 * garbage.USUAL[0]):
        there.append([0])
    assert cycle() is None


@pytest.mark.slow
def test_a_command_searches_rarely() -> None:
    code = (
        "import gc, sys; sys.argv[1:] = ['models']; from launch import cli; cli._exit = lambda code: print(gc.get_threshold()); cli.main()"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True).stdout
    assert printed.splitlines()[-1] == str(garbage.RARELY)
