"""Prints how far a study is, and what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import typer

from launch.output.runs import print_json, print_title
from launch.output.tables import show_texts
from tdformer.analysis.claims import CLAIM_COLUMNS, Judgement, claim_row
from tdformer.runs.comparison import lower_is_better
from tdformer.runs.study import StudyResult, warnings_on
from tdformer.runs.study_table import study_columns, study_row


def show_runs(result: StudyResult, as_json: bool) -> None:
    """Print all runs of a study with their states."""
    rows = [(run, result.states[run.setting][run.seed]) for run in result.study.runs()]
    if as_json:
        print_json({"runs": [{"setting": run.setting, "seed": run.seed, "run": str(run.path), "state": state} for run, state in rows]})
        return
    show_texts(["setting", "seed", "state", "run"], [[run.setting, str(run.seed), state, str(run.path)] for run, state in rows], (0, 2, 3))


def show_study(result: StudyResult) -> None:
    """Print a table of the settings, best first, with their differences to the reference."""
    metric = result.study.metric
    sign = 1 if lower_is_better(metric) else -1
    ranked = sorted(result.settings, key=lambda setting: sign * setting.spread.mean if setting.spread else math.inf)
    print_title(f"Study {result.study.name}")
    show_texts(study_columns(result), [study_row(metric, setting) for setting in ranked], texts=(0,))
    for remark in warnings_on(result):
        typer.echo(f"note: {remark}", err=True)


def show_judgements(judgements: Sequence[Judgement]) -> None:
    """Print a table of the paper's claims with their verdicts. Nothing if there are none."""
    if not judgements:
        return
    typer.echo()
    print_title("The paper's claims, judged seed by seed")
    show_texts(CLAIM_COLUMNS, [claim_row(judgement) for judgement in judgements], texts=(0, 1, 2, 5))
