"""Who is to blame, by what the ranks last said."""

from __future__ import annotations

import socket
import time

import pytest

from tdformer.distributed.watchdog.posts import Hub, Spoke, connect, host
from tdformer.distributed.watchdog.progress import Progress, Status
from tdformer.distributed.watchdog.verdict import Limits, Member, judge, limits

LIMITS = Limits(usual_s=60, slow_s=300)
NOW = 1000.0


def member(rank: int, meetings: int, idle_s: float = 0, heard_s_ago: float = 1, **changes: object) -> Member:
    status = Status(meetings, idle_s, "training", is_slow=False, place=f"place{rank}", waits=bool(meetings % 2))
    return Member(rank, "node", 100 + rank, NOW - heard_s_ago, status, **changes)  # type: ignore[arg-type]


def blamed(*members: Member) -> tuple[str, tuple[int, ...]] | None:
    verdict = judge(members, NOW, LIMITS)
    return (verdict.kind, verdict.ranks) if verdict else None


def test_a_run_that_moves_is_left_alone() -> None:
    assert blamed(member(0, 7, 59), member(1, 6, 59)) is None
    assert blamed(member(0, 7, 100), member(1, 6, 30)) is None, "what rank 0 waits for is still within its time"


def test_the_rank_that_has_not_come_is_to_blame_not_those_that_wait() -> None:
    assert blamed(member(0, 7, 70), member(1, 6, 65), member(2, 7, 70)) == ("stuck", (1,))
    verdict = judge([member(0, 7, 70), member(1, 6, 65)], NOW, LIMITS)
    assert verdict
    assert verdict.text == "no progress for 60 s of rank 1 (process 101 on node) while training, at place1; the others wait for it"


def test_where_all_are_at_the_same_meeting_all_are_named() -> None:
    assert blamed(member(0, 7, 70), member(1, 7, 65)) == ("stuck", (0, 1))


def test_a_rank_that_is_not_heard_is_judged_by_its_silence() -> None:
    assert blamed(member(0, 7, 70), member(1, 6, 65, heard_s_ago=30)) is None
    assert blamed(member(0, 7, 70), member(1, 6, 0, heard_s_ago=61)) == ("silent", (1,))


def test_starting_and_saving_may_take_longer() -> None:
    slow = Member(0, "node", 100, NOW, Status(2, 299, "saving", is_slow=True))
    assert blamed(slow) is None
    slow.status = Status(2, 301, "saving", is_slow=True)
    assert blamed(slow) == ("stuck", (0,))


def test_a_rank_that_ended() -> None:
    assert blamed(member(0, 6), member(1, 6, is_lost=True)) == ("died", (1,))
    assert blamed(member(0, 6), member(1, 6, is_lost=True, ended=NOW - 100)) is None, "its work was done"
    assert blamed(member(0, 6), member(1, 6, ended=NOW, error="KeyError: 'x'")) == ("failed", (1,))
    mistake = {"error": "no such file", "is_shared": True}
    assert blamed(member(0, 6), member(1, 6, ended=NOW - 1, **mistake)) is None, "the others have a moment to end with it"
    assert blamed(member(0, 6), member(1, 6, ended=NOW - 6, **mistake)) == ("failed", (1,))


def test_null_is_never() -> None:
    assert judge([member(0, 6, idle_s=1e9)], NOW, limits(None, None)) is None
    assert judge([member(0, 6, is_lost=True)], NOW, limits(None, None)), "a dead rank ends the run all the same"


def test_meetings_and_phases_are_progress() -> None:
    progress = Progress()
    assert (progress.status().phase, progress.status().is_slow) == ("starting", True)
    progress.enter("training")
    with progress.meeting():
        assert progress.status().waits
    with progress.during("saving"):
        assert (progress.status().phase, progress.status().is_slow) == ("saving", True)
    status = progress.status()
    assert (status.meetings, status.phase, status.is_slow, status.waits) == (2, "training", False, False)


@pytest.fixture
def posts() -> tuple[Hub, Spoke]:
    hub, address = host({"MASTER_ADDR": "127.0.0.1"})
    spoke = connect(1, address)
    deadline = time.monotonic() + 5
    while len([known for known in hub._lines.values() if known]) < 1:
        assert time.monotonic() < deadline
        assert hub.turn(Status(), LIMITS, 0.05) is None
    return hub, spoke


def test_a_stranger_on_the_port_changes_nothing(posts: tuple[Hub, Spoke]) -> None:
    hub, spoke = posts
    port = hub._server.getsockname()[1]
    for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 1, "host": "x", "pid": 1, "token": "guess"}\n', b"[1]\n", b""):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(text)
            assert hub.turn(Status(), LIMITS, 0.1) is None
            assert hub.turn(Status(), LIMITS, 0.1) is None
    assert spoke.turn(Status(), LIMITS, 0.1) is None


def test_a_rank_that_leaves_in_good_order_is_not_missed(posts: tuple[Hub, Spoke]) -> None:
    hub, spoke = posts
    spoke.leave("", False)
    for _ in range(3):
        assert hub.turn(Status(), LIMITS, 0.05) is None


def test_rank_0_is_judged_by_the_others(posts: tuple[Hub, Spoke]) -> None:
    hub, spoke = posts
    hub.leave("KeyError: 'x'", False)
    verdict = spoke.turn(Status(), LIMITS, 1)
    assert verdict
    assert (verdict.kind, verdict.ranks, verdict.by) == ("failed", (0,), 1)
