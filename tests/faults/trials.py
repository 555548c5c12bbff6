"""Runs that are killed, go on with other ranks at another ZeRO stage, are killed again, and must end as if nothing had happened.

    python -m tests.faults.trials --trials 60 [--seed 0] [--json]

Every trial is a function of (seed, its number), up to what the clock decides. Exit code 1 if any run was lost: one that did not go
on, or whose weights, statistics or moments differ by a bit from the uninterrupted run's, or whose metrics, in metrics.jsonl or
in MLflow, lack a step or have one twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launch.exit_codes import EXIT_STOPPED
from tdformer.distributed.watchdog.diagnosis import EXIT_PEER_LOST
from tests.conftest import write_config
from tests.distributed.starter import Started
from tests.faults import kills
from tests.faults.kills import KINDS, Kill
from tests.runs import ReferenceRun, difference, make_empty_mlflow, make_reference

KILLED = {128 + 9, -9, EXIT_PEER_LOST, EXIT_STOPPED}
SECONDS_FOR_A_RUN = 240


@dataclass
class Trial:
    number: int
    fault: str
    attempts: list[str] = field(default_factory=list)
    kills: int = 0
    seconds: float = 0.0
    lost: str = ""
    """Why; empty if the run survived."""


def run_trial(reference: ReferenceRun, folder: Path, seed: int, number: int, run_seconds: float = 6.0) -> Trial:
    """The first fault is the kind that is due, up to two more are any."""
    draw, start = random.Random(f"{seed} {number}"), time.monotonic()
    first, faults = KINDS[number % len(KINDS)], draw.choice([1, 1, 2, 3])
    trial = Trial(number, " ".join(first))
    folder.mkdir()
    write_config(reference.config(folder), folder)
    for attempt in range(faults + 1):
        world_size, stage = draw.choice([2, 3]), draw.randrange(4)
        kind = first if attempt == 0 else draw.choice(KINDS)
        kill = kills.choose(draw, kind, world_size, run_seconds) if attempt < faults else None
        settings = [f"training.zero_stage={stage}", f"checkpoint.keep_last={draw.choice([1, 3])}"]
        settings.append(f"checkpoint.background={draw.choice(['true', 'true', 'false'])}")
        trial.attempts.append(f"{world_size} ranks, {' '.join(settings)}" + (f", kill {kill}, {kill.number}" if kill else ""))
        code, trial.lost = _attempt(folder, world_size, settings, kill, attempt)
        trial.kills += code in KILLED
        if trial.lost or (kill is None and code):
            trial.lost = trial.lost or f"the last start ended with exit code {code}"
            break
        if code == 0:
            break
    if not trial.lost and (different := difference(folder / "run", reference.run)):
        trial.lost = f"differs from the uninterrupted run: {different}"
    trial.seconds = time.monotonic() - start
    return trial


def _attempt(folder: Path, world_size: int, settings: list[str], kill: Kill | None, number: int) -> tuple[int, str]:
    """(exit code, what went wrong besides the kill)."""
    run = folder / "run"
    environment = {"CUDA_VISIBLE_DEVICES": "", **(kill.environment(run) if kill else {})}
    arguments = ["train", folder / "run.yaml", *settings, "--run-dir", run, "--processes", world_size]
    launcher = Started(kills.MAIN, arguments, environment, folder / f"attempt-{number}")
    if kill and not environment.get("KILL_VICTIM"):
        kill.strike_from_outside(launcher, run)
    code = launcher.wait(SECONDS_FOR_A_RUN)
    errors = launcher.output("stderr")
    if code != 0 and code not in KILLED:
        return code, f"exit code {code}: {errors[-400:]}"
    return code, f"a traceback: {errors[-400:]}" if "Traceback" in errors else ""


def table(trials: list[Trial]) -> str:
    counts = Counter(trial.fault for trial in trials)
    lost = Counter(trial.fault for trial in trials if trial.lost)
    rows = [("SIGKILL of", "trials", "survived", "lost")]
    rows += [(fault, str(count), str(count - lost[fault]), str(lost[fault])) for fault, count in sorted(counts.items())]
    total, all_lost = len(trials), sum(lost.values())
    rows.append(("together", str(total), str(total - all_lost), str(all_lost)))
    return "\n".join(f"{fault:<40}{trials:>8}{survived:>10}{lost:>6}" for fault, trials, survived, lost in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to repeat one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave the runs of lost trials where they are")
    options = parser.parse_args()
    folder, trials = Path(tempfile.mkdtemp(prefix="trials-")), []
    start = time.monotonic()
    reference = make_reference(folder, make_empty_mlflow(folder), micro_batch=2)
    for number in range(options.first, options.first + options.trials):
        trial = run_trial(reference, folder / f"{number}", options.seed, number)
        trials.append(trial)
        text = f"LOST: {trial.lost}; {trial.attempts}" if trial.lost else "survived"
        print(f"trial {number}: {trial.fault}: {trial.kills} kills, {trial.seconds:.1f} s, {text}", file=sys.stderr, flush=True)
        if not (options.keep and trial.lost):
            shutil.rmtree(folder / f"{number}")
    if not options.keep:
        shutil.rmtree(folder)
    survived, seconds = sum(not trial.lost for trial in trials), time.monotonic() - start
    if options.json:
        load = os.getloadavg()[0]
        counts = {"trials": len(trials), "survived": survived, "lost": len(trials) - survived, "seconds": seconds, "load": load}
        print(json.dumps({**counts, "kills": sum(trial.kills for trial in trials), "each": [asdict(trial) for trial in trials]}, indent=1))
    else:
        print(f"{table(trials)}\n{sum(trial.kills for trial in trials)} kills in {seconds:.0f} s")
    sys.exit(survived < len(trials))


if __name__ == "__main__":
    main()
