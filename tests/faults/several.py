"""All ranks of a run with a fault, each with its own exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import write_config
from tests.distributed.starter import start_ranks


@dataclass(frozen=True)
class Ended:
    run: Path
    codes: list[int]
    output: str
    """What rank 0 printed. The others are silent."""
    errors: str

    def assert_refused(self, *parts: str) -> None:
        """Exit code 2 on every rank, one sentence for all of them, with all parts in it."""
        assert set(self.codes) == {2}, (self.codes, self.errors)
        sentences = [line for line in self.errors.splitlines() if line.startswith("error:")]
        assert len(sentences) == 1, self.errors
        assert "Traceback" not in self.errors
        for part in parts:
            assert part in sentences[0]

    def assert_finished(self) -> None:
        assert set(self.codes) == {0}, (self.codes, self.errors)
        assert "Traceback" not in self.errors


def train(module: str, world_size: int, config: dict, folder: Path, environment: Mapping[str, str]) -> Ended:
    """In `folder`/run, until all ranks have ended. A hang fails the test."""
    arguments = ["train", write_config(config, folder), "--run-dir", folder / "run"]
    ranks = start_ranks(world_size, module, arguments, folder / f"output-{module}", environment)
    try:
        codes = [rank.wait(timeout=180) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return Ended(folder / "run", codes, ranks[0].output(), "".join(rank.output("stderr") for rank in ranks))
