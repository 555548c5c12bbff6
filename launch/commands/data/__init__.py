"""`tdformer data`: write, index and verify data sets."""

from __future__ import annotations

from launch.commands.data.index import index
from launch.commands.data.prepare import prepare
from launch.commands.data.verify import verify
from launch.commands.options import plain_typer

data_app = plain_typer(help="Write, index and verify data sets.")
for command in (prepare, index, verify):
    data_app.command()(command)
