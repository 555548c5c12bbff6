"""`tdformer runs`: list, show, compare and sync runs, from their directories alone."""

from __future__ import annotations

from launch.commands.options import plain_typer
from launch.commands.runs.compare import compare
from launch.commands.runs.list import list_runs
from launch.commands.runs.show import show_run
from launch.commands.runs.sync import sync

runs_app = plain_typer(help="List, show and compare runs. Reads run directories, and needs no server and no GPU.")
runs_app.command("list")(list_runs)
runs_app.command("show")(show_run)
runs_app.command("compare")(compare)
runs_app.command("sync")(sync)
