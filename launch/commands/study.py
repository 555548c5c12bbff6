"""`tdformer study`: train settings x seeds, compare the settings seed by seed, and judge the paper's claims."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_pipelines.errors import UserError
from launch.commands.options import Json, Processes
from launch.exit_codes import EXIT_STOPPED
from launch.local_processes import run_command

if TYPE_CHECKING:
    from launch.slurm.cluster_config import ClusterConfig
    from launch.slurm.submit import Size
    from tdformer.config.schema import RunConfig
    from tdformer.config.study import StudyConfig, StudyRun
    from tdformer.runs.study_records import StudyRecord


def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file of the study.")],
    processes: Processes = 1,
    analyze: Annotated[bool, typer.Option("--analyze", help="Analyse the network of each run, after its training.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="With --analyze: samples to look at.")] = 1000,
    suite: Annotated[Path | None, typer.Option(help="With --analyze: a corruption suite of the validation set.")] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="A folder for what finished runs say, in small files. Runs that are in it count as finished, wherever they ran."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the comparison, and the paper's claims judged.")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit each run as a Slurm job, in place of training here.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="With --slurm: the number of nodes of each job.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="With --slurm: GPUs per node, with one process for each; 0 for CPUs.")] = 8,
    time: Annotated[str | None, typer.Option(help="With --slurm: the time limit of one job, such as 24:00:00.")] = None,
    cluster: Annotated[Path | None, typer.Option(help="With --slurm: the YAML file of the cluster (see configs/clusters).")] = None,
    report: Annotated[bool, typer.Option("--report", help="Train and analyse nothing; show what the finished runs say.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every setting, show all runs and their states, train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train every setting with every seed, one run after the other or as Slurm jobs, and compare the settings seed by seed.

    Runs that are finished are left out, and others go on. So the same command goes on after a kill. Several of them at once share the
    runs. The exit code is 75 if a run was told to stop. With --analyze, the paper's claims are judged by the finished runs.
    """
    from launch.output.study import show_runs
    from launch.slurm.cluster_config import load_cluster, with_options
    from launch.slurm.submit import Size
    from tdformer.analysis.study_report import check_replaceable
    from tdformer.config.study import load_study
    from tdformer.runs.study import read_study

    if suite and not analyze:
        raise UserError("--suite is for --analyze, which measures errors on it.")
    if report and results and not results.is_dir():
        raise UserError(f"{results} is no folder of results; --results without --report makes it.")
    if slurm and analyze:
        raise UserError("--analyze measures here: train with --slurm first, then give --analyze without it.")
    defined, configs = load_study(file)
    if html:
        check_replaceable(html)
    size = Size(nodes, gpus_per_node or processes, gpus_per_node)
    for config in configs.values():
        config.training.accumulation(nodes * size.processes_per_node if slurm else processes)
    if dry_run:
        show_runs(read_study(defined, configs, results), as_json)
        return
    if slurm and not report:
        _submit_all(defined, size, with_options(load_cluster(cluster), {"time": time}))
        return
    if not report:
        _run_all(defined, configs, results, Work(processes, analyze, samples, suite, quiet=as_json))
    _conclude(defined, configs, results, html, as_json)


@dataclass(frozen=True)
class Work:
    """What is done with each run."""

    processes: int
    analyze: bool
    samples: int
    suite: Path | None
    quiet: bool
    """True if standard output is for JSON alone."""


def _run_all(defined: StudyConfig, configs: Mapping[str, RunConfig], results: Path | None, work: Work) -> None:
    """Train the runs that are not finished, and analyse those that are not analysed. Runs that another process works on are left to it.

    Raises UserError after a run that failed, and Exit after one that was told to stop.
    """
    from data_pipelines.storage.locks import HeldError, locked
    from tdformer.runs.study import read_study

    runs = list(defined.runs())
    for folder, key in ((defined.folder, "output"), *([(results, "--results")] if results else [])):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"folder {folder} cannot be made ({error.strerror or error}); choose another {key}.") from None
    for number, run in enumerate(runs, start=1):
        try:
            with locked(defined.folder / f".{run.path.name}.lock", wait=False, across_machines=True):
                found = read_study(defined, configs, results)
                record = found.records[run.setting].get(run.seed)
                if record and (run.path.name in found.kept or not results) and _is_analysed(record, run, results, work):
                    continue
                _finish(defined, run, f"run {number} of {len(runs)}", results, work)
        except HeldError:
            typer.echo(f"another process works on {run.path}", err=work.quiet)


def _is_analysed(record: StudyRecord, run: StudyRun, results: Path | None, work: Work) -> bool:
    """Tell whether nothing is left to be measured of a finished run. Raises UserError if another number of samples was analysed."""
    if not work.analyze:
        return True
    from tdformer.analysis.result_files import with_own_analysis

    record = with_own_analysis(record, run.path)
    samples = record.analysis.get("samples", work.samples)
    if samples != work.samples:
        place = (results or run.path) / f"{record.name}.json"
        raise UserError(f"{place} is of an analysis of {samples} samples, not {work.samples}; give --samples {samples}, or remove it.")
    if record.analysis and ("corruptions" in record.analysis or not work.suite):
        return True
    if not run.path.is_dir():
        typer.echo(f"note: {record.name} cannot be analysed, its run directory is gone", err=True)
        return True
    return False


def _finish(defined: StudyConfig, run: StudyRun, title: str, results: Path | None, work: Work) -> None:
    """Train one run to its end, analyse it, and keep what it says. A run that is trained by another process is left to it."""
    from tdformer.runs import reader

    state = reader.read(run.path).state if run.path.is_dir() else "new"
    if state == "running":
        typer.echo(f"another process trains {run.path}", err=work.quiet)
        return
    if state != "finished":
        typer.echo(f"{title}: {run.setting}, seed {run.seed}, in {run.path}", err=work.quiet)
        _check(_train(defined, run, work), f"run {run.path}")
    if work.analyze:
        typer.echo(f"analysis of {run.path}", err=work.quiet)
        _analyze(run, work)
    if results:
        _keep(defined, run, results)


def _check(code: int, what: str) -> None:
    if code == EXIT_STOPPED:
        raise typer.Exit(EXIT_STOPPED)
    if code:
        raise UserError(f"{what} ended with exit code {code}; mend what it said, and the same command goes on.")


def _keep(defined: StudyConfig, run: StudyRun, results: Path) -> None:
    """Write what a finished run says into the folder of results."""
    from tdformer.analysis.result_files import read_analysis
    from tdformer.runs import reader, study_records

    record = study_records.record_of(run, reader.read(run.path, [defined.metric]), defined.metric)
    study_records.write(study_records.with_analysis(record, read_analysis(run.path)), results)


def _conclude(defined: StudyConfig, configs: Mapping[str, RunConfig], results: Path | None, html: Path | None, as_json: bool) -> None:
    """Show what the finished runs say, and judge the paper's claims by those that are analysed."""
    from launch.output.runs import print_json
    from launch.output.study import show_judgements, show_study
    from tdformer.analysis.claims import judge
    from tdformer.analysis.result_files import with_analyses
    from tdformer.analysis.study_report import write_study_report
    from tdformer.runs.study import read_study

    result = with_analyses(read_study(defined, configs, results))
    judgements = judge(result, {name: config.model.feedback is not None for name, config in configs.items()})
    if html:
        write_study_report(result, judgements, html)
    if as_json:
        print_json(result.as_dict() | {"claims": [judgement.as_dict() for judgement in judgements]})
        return
    show_study(result)
    show_judgements(judgements)
    if html:
        typer.echo(f"report  {html}")


def _submit_all(defined: StudyConfig, size: Size, cluster: ClusterConfig) -> None:
    """Submit the runs that are not finished and have no job. Raises UserError if Slurm refuses one; those before it stay submitted."""
    from launch.slurm import job_record, scheduler
    from launch.slurm.submit import ENDED, submit
    from tdformer.rundir.run_dir import RunDir
    from tdformer.runs import reader

    scheduler.check_installed()
    for run in defined.runs():
        there = run.path.is_dir()
        if there and reader.read(run.path).state == "finished":
            continue
        if there and (jobs := [job for job in job_record.jobs_of(RunDir(run.path)) if scheduler.state(job) not in ENDED]):
            typer.echo(f"{run.path} has job {jobs[0]}")
            continue
        target, overrides = (run.path, []) if there else (defined.base, list(run.overrides))
        submitted = submit(target, overrides, [], run.path, size, cluster, dry_run=False)
        typer.echo(f"{run.path}: job {submitted.number}")


def _train(defined: StudyConfig, run: StudyRun, work: Work) -> int:
    start = [str(run.path)] if (run.path / "config.yaml").exists() else [str(defined.base), *run.overrides, "--run-dir", str(run.path)]
    return run_command(["train", *start, "--processes", str(work.processes)], sys.stderr if work.quiet else None)


def _analyze(run: StudyRun, work: Work) -> None:
    """Analyse the network of a run, and evaluate it on the suite, unless that is done. The results lie in the run directory."""
    from tdformer.analysis.result_files import analysis_folder, suite_file

    log = sys.stderr if work.quiet else None
    folder, processes = analysis_folder(run.path), ("--processes", str(work.processes))
    of_suite = ("--suite", str(work.suite)) if work.suite else ()
    arguments = ["analyze", str(run.path), "--out", str(folder), "--samples", str(work.samples), *of_suite, *processes]
    _check(run_command(arguments, log), f"the analysis of {run.path}")
    if work.suite and not suite_file(run.path).exists():
        partial = suite_file(run.path).with_suffix(".partial")
        with partial.open("wb") as file:
            _check(run_command(["evaluate", str(run.path), *of_suite, *processes, "--json"], file), f"the evaluation of {run.path}")
        partial.replace(suite_file(run.path))
