"""`tdformer data`: write, index, verify and corrupt data sets."""

from __future__ import annotations

from launch.commands.data.corrupt import corrupt
from launch.commands.data.index import index
from launch.commands.data.prepare import prepare
from launch.commands.data.verify import verify
from launch.commands.options import plain_typer

data_app = plain_typer(help="Write, index, verify and corrupt data sets.")
for command in (prepare, index, verify, corrupt):
    data_app.command()(command)
