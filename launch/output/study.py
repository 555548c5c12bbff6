"""Prints how far a study is, and what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import typer

from launch.output.runs import print_json, print_title
from launch.output.tables import show_texts
from tdformer.analysis.claims import Judgement
from tdformer.runs import formatting
from tdformer.runs.comparison import lower_is_better
from tdformer.runs.study import SettingResult, StudyResult, warnings_on


def show_runs(result: StudyResult, as_json: bool) -> None:
    """Print all runs of a study with their states."""
    rows = [(run, result.states[run.setting][run.seed]) for run in result.study.runs()]
    if as_json:
        print_json({"runs": [{"setting": run.setting, "seed": run.seed, "run": str(run.path), "state": state} for run, state in rows]})
        return
    show_texts(["setting", "seed", "state", "run"], [[run.setting, str(run.seed), state, str(run.path)] for run, state in rows], (0, 2, 3))


def show_study(result: StudyResult) -> None:
    """Print a table of the settings, best first, with their differences to the reference."""
    metric, reference = result.study.metric, result.study.reference
    sign = 1 if lower_is_better(metric) else -1
    ranked = sorted(result.settings, key=lambda setting: sign * setting.spread.mean if setting.spread else math.inf)
    columns = ["setting", "runs", f"last {metric}", f"minus {reference}", "95 % interval (t)", "95 % interval (bootstrap)", "hours each"]
    print_title(f"Study {result.study.name}")
    show_texts(columns, [_row(metric, setting) for setting in ranked], texts=(0,))
    for remark in warnings_on(result):
        typer.echo(f"note: {remark}", err=True)


def show_judgements(judgements: Sequence[Judgement]) -> None:
    """Print a table of the paper's claims with their verdicts. Nothing if there are none."""
    if not judgements:
        return
    typer.echo()
    print_title("The paper's claims, judged seed by seed")
    rows = [
        [
            f"{judgement.claim.text} {judgement.claim.quantity}",
            judgement.setting,
            judgement.against or "itself",
            f"{judgement.difference.mean:+.3g}",
            f"{judgement.difference.t_low:+.3g} to {judgement.difference.t_high:+.3g}",
            judgement.verdict,
        ]
        for judgement in judgements
    ]
    show_texts(["claim and what is measured", "setting", "against", "difference", "95 % interval", "verdict"], rows, texts=(0, 1, 2, 5))


def _row(metric: str, setting: SettingResult) -> list[str]:
    difference = formatting.paired(metric, setting.difference) if setting.difference else (formatting.NOTHING,) * 3
    return [
        setting.name,
        str(len(setting.values)),
        formatting.spread_of(metric, setting.spread),
        *difference,
        formatting.hours(setting.hours),
    ]
