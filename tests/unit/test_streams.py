"""Whatever happens to standard output and standard error, a print ends nothing. Each case is a real process with a real file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

LINES = "for number in range(20000): print('line', number, flush=True)\n"
"""More than a pipe holds."""


def start(body: str, unbuffered: bool = False, **options: Any) -> subprocess.Popen[str]:
    """Start a program that protects its streams, does what `body` says, and then reports its end in a file named by END."""
    begin = "import os, sys\nfrom launch.output import streams\nstreams.protect()\n"
    program = f"{begin}{body}\nstreams.flush()\nopen(os.environ['END'], 'w').write('reached')\n"
    environment = {**os.environ, **options.pop("environment", {})}
    command = [sys.executable, *(["-u"] if unbuffered else []), "-c", program]
    return subprocess.Popen(command, text=True, cwd=REPOSITORY, env=environment, **options)


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("END", str(tmp_path / "end"))
    return tmp_path / "end"


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_reader_who_leaves(end: Path, unbuffered: bool) -> None:
    process = start(LINES, unbuffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert (process.wait(30), process.stderr.read()) == (0, "")
    assert end.read_text() == "reached"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk(end: Path, stream: str) -> None:
    body = f"print('lost' * 9000, file=sys.{stream})\nassert (streams.lost_output() is None) == {stream == 'stderr'}"
    other = "stderr" if stream == "stdout" else "stdout"
    with open("/dev/full", "w") as full:
        process = start(body, **{stream: full, other: subprocess.PIPE})
        told, _ = process.communicate(timeout=30) if other == "stdout" else process.communicate(timeout=30)[::-1]
    assert (process.returncode, told) == (0, "")
    assert end.read_text() == "reached"


def test_a_run_says_once_that_its_output_is_lost(end: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start(f"streams.go_on_without_reader()\n{LINES}", stdout=full, stderr=subprocess.PIPE)
        _, told = process.communicate(timeout=60)
    assert told == "warning: standard output cannot be written (No space left on device); the run goes on without it.\n"
    assert end.read_text() == "reached"


def test_descriptors_that_are_closed_are_not_given_to_files(end: Path, tmp_path: Path) -> None:
    """Otherwise the next file that is opened would be standard output, and prints would go into it."""
    name = str(tmp_path / "file")
    body = f"file = open({name!r}, 'w')\nprint('stray')\nprint('stray', file=sys.stderr)\nos.write(1, b'stray')\nfile.close()"
    process = start(body, preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)])
    assert process.wait(30) == 0
    assert (tmp_path / "file").read_text() == ""
    assert end.read_text() == "reached"


def test_a_terminal_that_is_lost(end: Path) -> None:
    master, slave = pty.openpty()
    process = start(f"{LINES}print('x', file=sys.stderr)", stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.read(master, 6)
    os.close(master)
    assert process.wait(60) == 0
    assert end.read_text() == "reached"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_run_does_not_wait_for_a_reader_who_sleeps(end: Path, kind: str) -> None:
    """Ctrl-S stops the output of a terminal."""
    reader, writer = pty.openpty() if kind == "terminal" else os.pipe()
    if kind == "terminal":
        os.write(reader, b"\x13")
    process = start(
        f"streams.PATIENCE_S = 0.2\nstreams.go_on_without_reader()\n{LINES}sys.stdin.read(1)\nprint('last')",
        stdin=subprocess.PIPE,
        stdout=writer,
    )
    os.close(writer)
    time.sleep(3)  # all lines are printed meanwhile, or dropped
    if kind == "terminal":
        os.write(reader, b"\x11")
    seen: list[bytes] = []
    thread = threading.Thread(target=_read_all, args=(reader, seen), daemon=True)
    thread.start()
    time.sleep(0.5)
    assert process.stdin
    process.stdin.write("x")
    process.stdin.close()
    assert process.wait(60) == 0
    thread.join(10)
    text = b"".join(seen).decode().replace("\r", "")
    assert text.endswith("[nobody read the output for a while, and what came here was dropped]\nlast\n")
    assert "line 19999" not in text
    assert end.read_text() == "reached"


def _read_all(descriptor: int, into: list[bytes]) -> None:
    try:
        while data := os.read(descriptor, 65536):
            into.append(data)
    except OSError:  # so a terminal ends
        pass
    finally:
        os.close(descriptor)


@pytest.mark.slow
def test_a_command_waits_for_its_reader(end: Path) -> None:
    """`tdformer runs compare | less` loses nothing, however long its user looks at the first page."""
    process = start(LINES, stdout=subprocess.PIPE)
    time.sleep(1)
    assert process.poll() is None
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "line 19999"
    assert len(out.splitlines()) == 20000


@pytest.mark.slow
def test_a_descriptor_that_does_not_block_loses_nothing(end: Path) -> None:
    process = start(f"os.set_blocking(1, False)\n{LINES}", stdout=subprocess.PIPE)
    time.sleep(1)
    assert len(process.communicate(timeout=60)[0].splitlines()) == 20000


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"a... 1 +- 2, 3 x 4, 158, \\xe9 \\u65e5 \xff\n"),
        ("latin-1", b"a... 1 \xb1 2, 3 \xd7 4, 158, \xe9 \\u65e5 \xff\n"),
        ("utf-8", "a… 1 ± 2, 3 × 4, ▁▅█, é 日 ".encode() + b"\xff\n"),
    ],
)
def test_characters_that_a_terminal_lacks_are_replaced(end: Path, encoding: str, expected: bytes) -> None:
    """The last one stands for a byte of a file name that is no text."""
    body = r"print('a\u2026 1 \u00b1 2, 3 \u00d7 4, \u2581\u2585\u2588, \u00e9 \u65e5 \udcff')"
    process = start(body, stdout=subprocess.PIPE, environment={"PYTHONIOENCODING": encoding})
    assert process.stdout
    assert process.stdout.buffer.read() == expected
    assert process.wait(30) == 0
