"""`tdformer bench`: measure what networks, loaders and runs cost, beside a reference."""

from __future__ import annotations

from launch.commands.bench.end_to_end import bench_end_to_end
from launch.commands.bench.loader import bench_loader
from launch.commands.bench.memory import bench_memory
from launch.commands.bench.scaling import bench_scaling
from launch.commands.bench.step import bench_step
from launch.commands.bench.telemetry import bench_telemetry
from launch.commands.options import plain_typer

bench_app = plain_typer(help="Measure what networks, loaders and runs cost, beside a reference.")
bench_app.command("memory")(bench_memory)
bench_app.command("step")(bench_step)
bench_app.command("loader")(bench_loader)
bench_app.command("telemetry")(bench_telemetry)
bench_app.command("scaling")(bench_scaling)
bench_app.command("end-to-end")(bench_end_to_end)
