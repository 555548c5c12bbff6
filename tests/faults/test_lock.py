"""A run directory has one live run at a time, and the next run takes over what a dead one left."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from data_pipelines.errors import UserError
from tdformer.rundir import lock_file, run_lock
from tdformer.rundir.lock_holder import Holder, start_of, this_process
from tdformer.rundir.run_dir import RunDir
from tests.conftest import write_config
from tests.distributed.starter import Started, tdformer

ELSEWHERE = {"host": "node7", "machine": "another boot"}
HOLDER_HERE_ENDED = {"pid": 2**22 + 1}
"""Linux gives out no such pid."""


def unexpected(reason: str) -> None:
    raise AssertionError(reason)


def forge(run: Path, seconds_ago: float = 0.0, **changes: object) -> Holder:
    """Write the lock of another process, whose last heartbeat was `seconds_ago`."""
    holder = replace(this_process(run), **changes)  # type: ignore[arg-type]
    (run / "lock.json").write_text(json.dumps(asdict(holder)))
    then = time.time() - seconds_ago
    os.utime(run / "lock.json", (then, then))
    return holder


def refusal(run: Path) -> str:
    """Try to hold the run, and return the error."""
    with pytest.raises(UserError) as error, run_lock.held(RunDir(run), unexpected):
        pass
    return str(error.value)


def assert_can_be_held(run: Path) -> None:
    """Hold the run, see that nobody else can, and that nothing is left of it afterwards."""
    with run_lock.held(RunDir(run), unexpected):
        assert lock_file.read(run / "lock.json").pid == os.getpid()  # type: ignore[union-attr]
        with pytest.raises(UserError, match="held by another live run"):
            run_lock.check_free(RunDir(run))
    assert left_in(run) == []


def left_in(run: Path) -> list[Path]:
    """What a holder leaves, but for the note of who held the lock last."""
    return [path for path in run.iterdir() if path.name != "last_holder"]


def test_a_live_run_here_is_named(tmp_path: Path) -> None:
    with run_lock.held(RunDir(tmp_path), unexpected):
        text = refusal(tmp_path)
    assert f"another live run (process {os.getpid()} on " in text
    assert f"since {time.strftime('%Y-')}" in text
    assert f"wait 60 s or remove {tmp_path / 'lock.json'}" in text
    assert_can_be_held(tmp_path)


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock.held(RunDir(tmp_path), unexpected):
        raise ZeroDivisionError
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("changes", [HOLDER_HERE_ENDED, {"started": "1"}], ids=["no such process", "the number is another process now"])
def test_a_dead_holder_here_is_replaced_at_once(tmp_path: Path, changes: dict) -> None:
    forge(tmp_path, **changes)
    start = time.monotonic()
    assert_can_be_held(tmp_path)
    assert time.monotonic() - start < 2


def test_a_holder_that_is_a_zombie_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "100"]) as child:
        forge(tmp_path, pid=child.pid, started=start_of(child.pid))
        assert f"process {child.pid} on" in refusal(tmp_path)
        child.kill()
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert_can_be_held(tmp_path)


def test_a_process_of_another_user_that_proc_hides_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid, /proc shows nothing of another user's process, and the kernel denies a signal to it."""
    forge(tmp_path, **HOLDER_HERE_ENDED)

    def deny(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", deny)
    assert "held by another live run" in refusal(tmp_path)
    assert run_lock.is_held(RunDir(tmp_path))


def test_a_silent_holder_elsewhere_is_replaced(tmp_path: Path) -> None:
    forge(tmp_path, seconds_ago=61, **ELSEWHERE)
    assert_can_be_held(tmp_path)


@pytest.mark.parametrize("host", ["node7", socket.gethostname()], ids=["another host name", "the same host name"])
def test_a_holder_elsewhere_is_refused_once_it_gives_a_heartbeat(tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    forge(tmp_path, seconds_ago=30, **{**ELSEWHERE, **HOLDER_HERE_ENDED, "host": host})
    with ThreadPoolExecutor(1) as thread:
        thread.submit(beat_soon, tmp_path / "lock.json")
        assert f"(process {HOLDER_HERE_ENDED['pid']} on {host}, since" in refusal(tmp_path)
    assert "waiting to see whether it gives a sign of life" in capsys.readouterr().err


def beat_soon(path: Path) -> None:
    time.sleep(1)
    lock_file.beat(path)


def test_a_holder_elsewhere_that_falls_silent_is_waited_for(tmp_path: Path) -> None:
    forge(tmp_path, seconds_ago=58, **ELSEWHERE)
    start = time.monotonic()
    assert_can_be_held(tmp_path)
    assert 1 < time.monotonic() - start < 10


def test_a_run_whose_launcher_was_killed_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = {"launcher": HOLDER_HERE_ENDED["pid"], "launcher_started": "1"}
    forge(tmp_path, **ending)
    run_lock.check_free(RunDir(tmp_path))
    monkeypatch.setattr(run_lock, "SECONDS_FOR_ENDING", 0.2)
    assert "held by another live run" in refusal(tmp_path)
    monkeypatch.setattr(run_lock, "SECONDS_FOR_ENDING", 60)
    with subprocess.Popen(["sleep", "1"]) as child:
        forge(tmp_path, pid=child.pid, started=start_of(child.pid), **ending)
        assert_can_be_held(tmp_path)


def test_a_lock_that_cannot_be_read_is_taken_for_one_of_another_machine(tmp_path: Path) -> None:
    (tmp_path / "lock.json").touch()
    os.utime(tmp_path / "lock.json", (0, 0))
    assert_can_be_held(tmp_path)


def test_a_lock_that_is_being_made_is_not_taken_for_the_unreadable_one_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "lock.json").touch()
    assert not lock_file.replace(tmp_path / "lock.json", None, this_process(tmp_path))
    assert (tmp_path / "lock.json").exists()


def test_a_full_disk_leaves_no_lock(tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        assert "cannot be locked (File too large)" in refusal(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_who_loses_the_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.05)
    told: list[str] = []
    RunDir(tmp_path).config.touch()
    with run_lock.held(RunDir(tmp_path), told.append):
        (tmp_path / "lock.json").unlink()
        while not (tmp_path / "lock.json").exists():
            time.sleep(0.01)  # The holder makes a lock again that was removed by hand.
        assert told == []
        other = forge(tmp_path, **ELSEWHERE, token="theirs")
        while not told:
            time.sleep(0.01)
    assert "was taken over by process" in told[0]
    assert "on node7" in told[0]
    assert lock_file.read(tmp_path / "lock.json") == other, "it is not ours to give back"


def test_the_holder_can_ask_at_any_time_whether_it_may_write(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "lock.json"
    RunDir(tmp_path).config.touch()
    with run_lock.held(RunDir(tmp_path), told.append) as lock:
        assert lock.may_write()
        path.unlink()
        assert lock.may_write(), "a lock that was removed by hand is made again"
        assert lock_file.read(path) == lock.own
        forge(tmp_path, **ELSEWHERE, token="theirs")
        assert not lock.may_write()
        path.unlink()
        assert not lock.may_write(), "what was lost stays lost"
    assert not path.exists(), "a lock that was lost is not made again"
    assert len(told) == 1


@pytest.mark.parametrize("has_ended", [False, True], ids=["the other still trains", "the other has ended"])
def test_who_was_halted_while_the_run_went_on_may_not_write(tmp_path: Path, has_ended: bool) -> None:
    """Somebody removes the lock of a halted holder, as a refusal advises, and another process trains the run, to its end perhaps."""
    told: list[str] = []
    RunDir(tmp_path).config.touch()
    with run_lock.held(RunDir(tmp_path), told.append) as halted:
        assert halted.may_write()
        (tmp_path / "lock.json").unlink()
        with run_lock.held(RunDir(tmp_path), unexpected):
            if not has_ended:
                assert not halted.may_write()
        assert not halted.may_write()
        assert not (tmp_path / "lock.json").exists()
    assert len(told) == 1
    assert "was taken over" in told[0]


def test_a_lock_that_was_made_again_in_a_folder_that_is_being_removed_is_no_run(tmp_path: Path) -> None:
    """A removal takes the lock first, the holder makes it again, and the removal takes the rest."""
    told: list[str] = []
    RunDir(tmp_path).config.touch()
    with run_lock.held(RunDir(tmp_path), told.append) as lock:
        (tmp_path / "lock.json").unlink()
        assert lock.may_write()
        RunDir(tmp_path).config.unlink()
        assert not lock.may_write()
    assert "is gone" in told[0]


def test_a_released_lock_permits_nothing_and_is_not_made_again(tmp_path: Path) -> None:
    RunDir(tmp_path).config.touch()
    with run_lock.held(RunDir(tmp_path), unexpected) as lock:
        pass
    assert not lock.may_write()
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_run_directory_that_is_gone_is_told_and_not_made_again(tmp_path: Path, how: str) -> None:
    run, told = tmp_path / "run", list[str]()
    run.mkdir()
    RunDir(run).config.touch()
    with run_lock.held(RunDir(run), told.append) as lock:
        shutil.rmtree(run) if how == "removed" else run.rename(tmp_path / "renamed")
        assert not lock.may_write()
    assert told == [f"{run} is gone: it was removed, renamed or unmounted while it was trained"]
    assert not run.exists()


def test_a_copy_of_a_live_run_is_not_held_by_the_original(tmp_path: Path) -> None:
    """The lock comes along with `cp -r`. A run that was moved while it was trained stays held, and so does one with two names."""
    original, copy, link = tmp_path / "original", tmp_path / "copy", tmp_path / "link"
    original.mkdir()
    link.symlink_to(original)
    with run_lock.held(RunDir(original), unexpected):
        shutil.copytree(original, copy)
        assert not run_lock.is_held(RunDir(copy))
        run_lock.check_free(RunDir(copy))
        assert_can_be_held(copy)
        assert run_lock.is_held(RunDir(link))
        assert "held by another live run" in refusal(link)
        original.rename(tmp_path / "moved")
        assert run_lock.is_held(RunDir(tmp_path / "moved"))
        (tmp_path / "moved").rename(original)


@pytest.mark.parametrize("dies", [False, True], ids=["", "after one died while taking it over"])
def test_of_many_that_find_the_same_dead_holder_one_gets_the_lock(tmp_path: Path, dies: bool) -> None:
    path, contenders = tmp_path / "lock.json", [this_process(tmp_path) for _ in range(8)]
    meeting = threading.Barrier(len(contenders))

    def contend(own: Holder) -> bool:
        meeting.wait()
        return lock_file.replace(path, dead, own)

    with ThreadPoolExecutor(len(contenders)) as threads:
        for number in range(50):
            dead = forge(tmp_path, started="1", token=str(number))
            if dies:
                abandon_right(path, dead)
            winners = [own for own, has_won in zip(contenders, threads.map(contend, contenders), strict=True) if has_won]
            assert len(winners) == 1
            assert lock_file.read(path) == winners[0]
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_seen_of_a_lock_before_it_changed_hands_counts_no_more(tmp_path: Path) -> None:
    path, dead = tmp_path / "lock.json", forge(tmp_path, started="1")
    one, other = this_process(tmp_path), this_process(tmp_path)
    assert lock_file.replace(path, dead, one)
    assert not lock_file.replace(path, dead, other)
    lock_file.release(path, dead)
    assert lock_file.read(path) == one


def test_whoever_dies_while_taking_the_lock_over_is_passed_over_in_time(tmp_path: Path) -> None:
    path, dead = tmp_path / "lock.json", forge(tmp_path, started="1")
    right = abandon_right(path, dead)
    own = this_process(tmp_path)
    os.utime(right)
    assert not lock_file.replace(path, dead, own)
    os.utime(right, (0, 0))
    assert lock_file.replace(path, dead, own)
    assert list(tmp_path.iterdir()) == [path]


def abandon_right(path: Path, holder: Holder) -> Path:
    """Leave what a process leaves that was killed long ago, while it changed the lock of this holder."""
    right = path.with_name(f"{path.name}.{holder.token}")
    right.touch()
    os.utime(right, (0, 0))
    return right


@pytest.fixture
def started(run_config: dict, tmp_path: Path) -> Iterator[Started]:
    """Start a run on two processes in tmp_path / "run", and wait for its first checkpoint."""
    run_config["training"]["epochs"] = 1000
    arguments = ["train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run", "--processes", 2]
    command = Started("launch", arguments, {}, tmp_path / "first")
    try:
        while not (tmp_path / "run" / "checkpoints" / "latest").exists():
            assert command.poll() is None
            time.sleep(0.05)
        yield command
    finally:
        command.kill()


@pytest.mark.slow
def test_a_second_run_is_refused_and_goes_on_once_the_launcher_of_the_first_is_killed(started: Started, tmp_path: Path) -> None:
    """The ranks of the first run stop and save when its launcher is killed, and the next start waits for them."""
    run = tmp_path / "run"
    ranks = [child.pid for child in psutil.Process(started.pid).children()]
    before = (run / "config.yaml").read_bytes()
    for arguments in (("checkpoint.keep_last=7",), ("--processes", 2)):
        result = tdformer("train", run, *arguments)
        assert result.returncode == 2
        assert result.stderr.count("error:") == 1
        assert f"is held by another live run (process {min(ranks)} on " in result.stderr
        assert (run / "config.yaml").read_bytes() == before
    started.kill()
    result = tdformer("train", run, "preemption.max_minutes=0.05", "--processes", 2)
    assert result.returncode == 75, result.stderr
    assert not any(psutil.pid_exists(pid) for pid in ranks)
    assert "resumed at step" in result.stdout
    assert not (run / "lock.json").exists()


@pytest.mark.slow
def test_what_a_killed_run_leaves_is_taken_over(started: Started, tmp_path: Path) -> None:
    run = tmp_path / "run"
    family = psutil.Process(started.pid).children()
    for process in (*family, started):
        process.kill()
    psutil.wait_procs(family)
    assert (run / "lock.json").exists()
    assert tdformer("train", run, "preemption.max_minutes=0.01").returncode == 75
    assert not (run / "lock.json").exists()
