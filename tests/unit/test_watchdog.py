"""The watchdog diagnoses which rank failed, by what the ranks last sent."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tdformer.distributed.watchdog.client import Client, connect
from tdformer.distributed.watchdog.diagnosis import Member, Timeouts, diagnose
from tdformer.distributed.watchdog.progress import Progress, Status
from tdformer.distributed.watchdog.server import Server, listen

TIMEOUTS = Timeouts(usual_s=60, slow_s=300)
NOW = 1000.0


def member(rank: int, collectives: int, idle_s: float = 0, heard_s_ago: float = 1, **changes: object) -> Member:
    status = Status(collectives, idle_s, "training", is_slow=False, place=f"place{rank}", in_collective=bool(collectives % 2))
    return Member(rank, "node", 100 + rank, NOW - heard_s_ago, status, **changes)  # type: ignore[arg-type]


def failed(*members: Member) -> tuple[str, tuple[int, ...]] | None:
    diagnosis = diagnose(members, NOW, TIMEOUTS)
    return (diagnosis.kind, diagnosis.failed_ranks) if diagnosis else None


def test_a_run_that_moves_is_left_alone() -> None:
    assert failed(member(0, 7, 59), member(1, 6, 59)) is None
    assert failed(member(0, 7, 100), member(1, 6, 30)) is None, "what rank 0 waits for is still within its time"


def test_the_rank_that_has_not_come_is_named_not_those_that_wait() -> None:
    assert failed(member(0, 7, 70), member(1, 6, 65), member(2, 7, 70)) == ("stuck", (1,))
    diagnosis = diagnose([member(0, 7, 70), member(1, 6, 65)], NOW, TIMEOUTS)
    assert diagnosis
    assert diagnosis.text == "no progress for 60 s of rank 1 (process 101 on node) while training, at place1; the others wait for it"


def test_where_all_are_in_the_same_collective_all_are_named() -> None:
    assert failed(member(0, 7, 70), member(1, 7, 65)) == ("stuck", (0, 1))


def test_a_rank_that_is_not_heard_is_diagnosed_by_its_silence() -> None:
    assert failed(member(0, 7, 70), member(1, 6, 65, heard_s_ago=30)) is None
    assert failed(member(0, 7, 70), member(1, 6, 0, heard_s_ago=61)) == ("silent", (1,))


def test_starting_and_saving_may_take_longer() -> None:
    slow = Member(0, "node", 100, NOW, Status(2, 299, "saving", is_slow=True))
    assert failed(slow) is None
    slow.status = Status(2, 301, "saving", is_slow=True)
    assert failed(slow) == ("stuck", (0,))


def test_a_rank_that_ended() -> None:
    assert failed(member(0, 6), member(1, 6, is_disconnected=True)) == ("died", (1,))
    assert failed(member(0, 6), member(1, 6, is_disconnected=True, left_at=NOW - 100)) is None, "its work was done"
    assert failed(member(0, 6), member(1, 6, left_at=NOW, error="KeyError: 'x'")) == ("failed", (1,))
    mistake = {"error": "no such file", "is_shared": True}
    assert failed(member(0, 6), member(1, 6, left_at=NOW - 1, **mistake)) is None, "the others have a moment to end with it"
    assert failed(member(0, 6), member(1, 6, left_at=NOW - 6, **mistake)) == ("failed", (1,))


def test_null_is_never() -> None:
    assert diagnose([member(0, 6, idle_s=1e9)], NOW, Timeouts.from_config(None, None)) is None
    assert diagnose([member(0, 6, is_disconnected=True)], NOW, Timeouts.from_config(None, None)), "a dead rank ends the run all the same"


def test_a_change_of_phase_is_told_at_once() -> None:
    """The phase that the others know decides for how long they wait for a rank that hangs."""
    progress, told = Progress(), list[tuple[str, bool]]()
    progress.on_phase = lambda: told.append((progress.status().phase, progress.status().is_slow))
    progress.enter_phase("training")
    with progress.slow_phase("saving"):
        pass
    assert told == [("training", False), ("saving", True), ("training", False)]


def test_collectives_and_phases_are_progress() -> None:
    progress = Progress()
    assert (progress.status().phase, progress.status().is_slow) == ("starting", True)
    progress.enter_phase("training")
    with progress.collective():
        assert progress.status().in_collective
    with progress.slow_phase("saving"):
        assert (progress.status().phase, progress.status().is_slow) == ("saving", True)
    status = progress.status()
    assert (status.collectives, status.phase, status.is_slow, status.in_collective) == (2, "training", False, False)


@pytest.fixture
def transports() -> tuple[Server, Client]:
    server, address = listen({"MASTER_ADDR": "127.0.0.1"})
    client = connect(1, address)
    deadline = time.monotonic() + 5
    while len([known for known in server._members.values() if known]) < 1:
        assert time.monotonic() < deadline
        assert server.exchange(Status(), TIMEOUTS, 0.05) is None
    return server, client


def test_heartbeats_are_not_answered_at_once(transports: tuple[Server, Client]) -> None:
    """Both sides send once in each exchange, which lasts its time. Otherwise they would answer each other as fast as they can."""
    rounds, seconds = 5, 0.1

    def exchange(side: Server | Client) -> float:
        start = time.monotonic()
        for _ in range(rounds):
            assert side.exchange(Status(), TIMEOUTS, seconds) is None
        return time.monotonic() - start

    with ThreadPoolExecutor(2) as threads:
        assert min(threads.map(exchange, transports)) >= rounds * seconds


@pytest.mark.parametrize("side", [0, 1])
def test_a_wait_ends_when_it_is_woken(transports: tuple[Server, Client], side: int) -> None:
    """A wait that goes on would run into the time limit of tests."""
    transports[side].wake()
    assert transports[side].exchange(Status(), TIMEOUTS, 10_000) is None


def test_a_stranger_on_the_port_changes_nothing(transports: tuple[Server, Client]) -> None:
    server, client = transports
    port = server._listener.getsockname()[1]
    for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 1, "host": "x", "pid": 1, "token": "guess"}\n', b"[1]\n", b""):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(text)
            assert server.exchange(Status(), TIMEOUTS, 0.1) is None
            assert server.exchange(Status(), TIMEOUTS, 0.1) is None
    assert client.exchange(Status(), TIMEOUTS, 0.1) is None


def test_a_rank_that_leaves_in_good_order_is_not_missed(transports: tuple[Server, Client]) -> None:
    server, client = transports
    client.send_goodbye("", False)
    for _ in range(3):
        assert server.exchange(Status(), TIMEOUTS, 0.05) is None


def test_rank_0_is_diagnosed_by_the_others(transports: tuple[Server, Client]) -> None:
    server, client = transports
    server.send_goodbye("KeyError: 'x'", False)
    diagnosis = client.exchange(Status(), TIMEOUTS, 1)
    assert diagnosis
    assert (diagnosis.kind, diagnosis.failed_ranks, diagnosis.found_by) == ("failed", (0,), 1)
