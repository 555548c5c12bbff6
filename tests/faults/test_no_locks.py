"""A file system without locks, as Lustre is without `-o flock`: nothing waits for a lock that nobody holds, and what excludes still does.

The system's calls are answered by a small library (LD_PRELOAD) in real processes, for files of one folder.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.errors import DataError, UnavailableError
from data_pipelines.prepare.working_folder import working_folder
from data_pipelines.storage.locks import HeldError, locked
from tests.conftest import REPOSITORY, write_config
from tests.distributed.starter import tdformer_from_scratch
from tests.unit.slow_prepare import SAMPLES

pytestmark = pytest.mark.slow

LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_without_locks(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    errno = atoi(getenv("LOCK_ERRNO"));
    return !strncmp(path, getenv("WITHOUT_LOCKS"), strlen(getenv("WITHOUT_LOCKS")));
}

int flock(int file, int operation) {
    int (*really)(int, int) = dlsym(RTLD_NEXT, "flock");
    return is_without_locks(file) ? -1 : really(file, operation);
}

static int control(const char *name, int file, int command, void *argument) {
    int (*really)(int, int, ...) = dlsym(RTLD_NEXT, name);
    int locks = command == F_SETLK || command == F_SETLKW || command == F_GETLK;
    return locks && is_without_locks(file) ? -1 : really(file, command, argument);
}

#define CONTROL(NAME) int NAME(int file, int command, ...) { \
    va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest); \
    return control(#NAME, file, command, argument); }
#undef fcntl
CONTROL(fcntl)
CONTROL(fcntl64)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    (folder / "locks.c").write_text(LIBRARY)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "locks.so", folder / "locks.c", "-ldl"], check=True)
    return folder / "locks.so"


def without_locks(library: Path, folder: Path, number: int = errno.ENOLCK) -> dict[str, str]:
    return {"LD_PRELOAD": str(library), "WITHOUT_LOCKS": str(folder), "LOCK_ERRNO": str(number)}


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


COUNT = """
import sys, time
from pathlib import Path
from data_pipelines.storage.locks import locked
path = Path(sys.argv[1])
for _ in range(20):
    with locked(path / "lock", wait=True):
        number = int((path / "count").read_text())
        time.sleep(0.005)
        (path / "count").write_text(str(number + 1))
"""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_processes_of_a_machine_wait_for_each_other(library: Path, tmp_path: Path, number: int) -> None:
    (tmp_path / "count").write_text("0")
    several = [start(without_locks(library, tmp_path, number), "-c", COUNT, str(tmp_path)) for _ in range(3)]
    assert [(process.wait(60), process.communicate()[1]) for process in several] == [(0, "")] * 3
    assert (tmp_path / "count").read_text() == "60"


def test_a_data_set_is_written_by_one_process_at_a_time_and_gone_on_with_after_a_kill(library: Path, tmp_path: Path) -> None:
    folder, environment = tmp_path / "set", without_locks(library, tmp_path)
    prepare = ("-m", "tests.unit.slow_prepare", str(folder), "wds", "1")
    with start(environment, *prepare) as first:
        while not list((folder / ".unfinished").glob("part-*.json")):
            assert first.poll() is None
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)  # or it would be done before the second has begun
        second = start(environment, *prepare)
        assert f"another process is writing {folder}; wait for it, or choose another folder." in second.communicate(timeout=60)[1]
        first.kill()
    third = start(environment, *prepare)
    assert third.communicate(timeout=120)[1] == ""
    assert third.returncode == 0
    assert json.loads((folder / "manifest.json").read_text())["blocks"] == [4] * (SAMPLES // 4)
    assert sorted(path.name for path in folder.glob(".*")) == []


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)


def test_a_data_set_that_another_machine_writes_is_left_alone(no_locks: None, tmp_path: Path) -> None:
    note = tmp_path / ".unfinished" / "lock.machine"
    note.parent.mkdir()
    note.write_text(json.dumps({"machine": "another", "host": "node-7", "pid": 42}))
    with pytest.raises(DataError) as refused, working_folder(tmp_path, {}):
        pass
    assert str(refused.value) == (
        f"another process is writing {tmp_path} (process 42 on node-7 holds it; if that process is gone, remove {note}); "
        f"wait for it, or choose another folder."
    )
    note.write_text("")  # it is being written, or its writer died there
    with (
        pytest.raises(DataError, match=f"a process of some machine holds it; if that process is gone, remove {note}"),
        working_folder(tmp_path, {}),
    ):
        pass
    note.unlink()
    with working_folder(tmp_path, {}):
        assert json.loads(note.read_text())["pid"] == os.getpid()
        with pytest.raises(HeldError), locked(note.with_name("lock"), wait=False, across_machines=True):
            pass
    assert not note.exists()


def test_what_a_dead_process_of_this_machine_noted_is_taken_over(no_locks: None, tmp_path: Path) -> None:
    with locked(tmp_path / "lock", wait=False, across_machines=True):
        left_behind = (tmp_path / "lock.machine").read_text()
    (tmp_path / "lock.machine").write_text(left_behind)
    with locked(tmp_path / "lock", wait=False, across_machines=True):
        pass


def test_a_lock_that_cannot_be_taken_for_another_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(UnavailableError, match=r"cannot be read now \(Input/output error\)"), working_folder(tmp_path, {}):
        pass


def test_sqlite_needs_locks_and_says_so(library: Path, run_config: dict, tmp_path: Path) -> None:
    """Otherwise its file would look locked by another process, and MLflow would get nothing, for ever."""
    folder = tmp_path / "lustre"
    folder.mkdir()
    run_config["tracking"]["uri"] = f"sqlite:///{folder}/mlflow.db"
    config = write_config(run_config, tmp_path)
    refused = tdformer_from_scratch("train", config, "--run-dir", tmp_path / "run", environment=without_locks(library, folder))
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: MLflow at sqlite:///{folder}/mlflow.db cannot be used ({folder} is on a file system without locks, which sqlite needs: "
        f"put the file on another one, or use a server); mend tracking.uri, tracking.experiment or the server.\n"
    )
