"""What all tests share: one thread for each process, a small data set, a small run, and what is left out where something is lacking."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run side by side, and bits depend on the number of threads

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from tdformer import garbage
from tests.distributed.starter import REPOSITORY as REPOSITORY
from tests.distributed.starter import tdformer as tdformer
from tests.runs import ReferenceRun, make_empty_mlflow, make_reference, tiny_config
from tests.runs import write_config as write_config
from tests.stripes import StripesSource, stored

garbage.search_rarely()  # until all tests are collected

settings.register_profile("full", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
settings.register_profile("fast", settings.get_profile("full"), max_examples=15)
settings.load_profile("full")


# --- what is lacking here ------------------------------------------------------------------------------------


def lacks_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def lacks_ffcv() -> bool:
    return importlib.util.find_spec("ffcv") is None


FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""


def lacks_fashion() -> bool:
    return not FASHION.is_dir()


def lacks_namespaces() -> bool:
    if os.geteuid() or not all(map(shutil.which, ("ip", "tc", "unshare"))):
        return True
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0


LACKING = {
    "gpu": (lacks_gpu, "needs a CUDA device; on a machine that has one: pytest -m gpu"),
    "ffcv": (lacks_ffcv, "needs the extra ffcv, which make test installs"),
    "fashion": (lacks_fashion, "needs the Debian package dataset-fashion-mnist, which make test installs"),
    "namespaces": (lacks_namespaces, "needs root, network namespaces and the package iproute2"),
}
OF_THE_MACHINE = ("gpu", "namespaces")
"""What no `make test` can install."""


def pytest_configure() -> None:
    """Refuse to start where TDFORMER_REQUIRE_ALL is set and tests would be skipped for more than a lack OF_THE_MACHINE."""
    if not os.environ.get("TDFORMER_REQUIRE_ALL"):
        return
    for name, (lacks, reason) in LACKING.items():
        if name not in OF_THE_MACHINE and lacks():
            raise pytest.UsageError(f"TDFORMER_REQUIRE_ALL is set, and tests would be skipped: {name} {reason}")


def pytest_collection_finish() -> None:
    garbage.search_among_new_objects()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests whose parameters ask for FFCV's format, or for the interpolation that is OpenCV's, which comes with FFCV."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if params.get("format") == "ffcv" or params.get("interpolation") == "area":
        item.add_marker(pytest.mark.ffcv)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need what is lacking here."""
    for marker, (is_lacking, reason) in LACKING.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and is_lacking():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


# --- tests side by side --------------------------------------------------------------------------------------

TOGETHER = (
    *("tests/slurm/", "tests/faults/test_mlflow_server.py", "tests/faults/test_numbers.py", "tests/distributed/test_plan.py"),
    *("tests/unit/test_bench_step.py", "tests/unit/test_kernels.py"),
)
"""Tests whose names begin alike share a cluster, a server, finished runs, measurements or compiled kernels. One test process runs
each of these groups."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give groups to one process each, and all other tests one by one. Marks of pytest-xdist 3.8 do not do this under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group for group in TOGETHER if nodeid.startswith(group)), nodeid)

    return Groups(config, log)


# --- what is made once ---------------------------------------------------------------------------------------


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` filled in the first test process that asked for it. The others wait, and share it, read only."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train (26 samples, 3 shards) and val (11 samples). Read only: damage a copy."""

    def make(folder: Path) -> None:
        stored(StripesSource(26, seed=1), folder / "train")
        stored(StripesSource(11, seed=2), folder / "val")

    return made_once(tmp_path_factory, "stripes", make)


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs. Read only: a run needs a copy."""
    return made_once(tmp_path_factory, "mlflow", make_empty_mlflow) / "mlflow.db"


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> ReferenceRun:
    """The uninterrupted run to which other runs are compared. Read only: damage a copy."""
    return ReferenceRun(made_once(tmp_path_factory, "reference", lambda folder: make_reference(folder, empty_mlflow)), empty_mlflow)


@pytest.fixture(scope="session")
def reference_for_three(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> ReferenceRun:
    """The reference run in micro-batches of two, so that three ranks can do it, too. It takes longer. Read only."""
    folder = made_once(tmp_path_factory, "reference-for-three", lambda folder: make_reference(folder, empty_mlflow, micro_batch=2))
    return ReferenceRun(folder, empty_mlflow, micro_batch=2)


@pytest.fixture
def run_config(tmp_path: Path, stripes: Path, empty_mlflow: Path) -> dict:
    """The configuration of a run of 2 epochs of 3 steps on `stripes`, which leave out 2 samples. Tests change it before they write it."""
    return tiny_config(stripes, tmp_path, empty_mlflow, global_batch=8, micro_batch=4, clip_grad=1.0)


def run_id_of(run: Path) -> str:
    """Return the id of the run's MLflow run, which it must have."""
    from tdformer.rundir.run_dir import RunDir
    from tdformer.tracking.run_ids import read_run_id

    run_id = read_run_id(RunDir(run), None)
    assert run_id is not None
    return run_id
