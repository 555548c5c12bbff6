"""The watchdog follows its table of transitions, also when two threads end it at the same moment."""

from __future__ import annotations

import itertools
import os
import threading

import pytest

from tdformer.distributed.watchdog import state, watchdog
from tdformer.distributed.watchdog.diagnosis import EXIT_PEER_LOST, Diagnosis, Timeouts
from tdformer.distributed.watchdog.progress import Status
from tdformer.distributed.watchdog.state import ARE_OTHERS_TOLD, Event, State, StateMachine
from tdformer.distributed.watchdog.watchdog import Watchdog

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the fixture `exits` ends threads

PATHS: dict[State, list[Event]] = {
    State.NEW: [],
    State.RUNNING: [Event.START],
    State.LEAVING: [Event.START, Event.MAIN_LEAVES],
    State.LEFT: [Event.START, Event.MAIN_LEAVES, Event.OTHERS_TOLD],
    State.ABORTING: [Event.START, Event.DIAGNOSED],
    State.ABORTING_LEAVING: [Event.START, Event.DIAGNOSED, Event.MAIN_LEAVES],
    State.ABORTED: [Event.START, Event.DIAGNOSED, Event.OTHERS_TOLD],
    State.ABORTED_LEAVING: [Event.START, Event.DIAGNOSED, Event.OTHERS_TOLD, Event.MAIN_LEAVES],
}


def machine_in(start: State) -> StateMachine:
    machine = StateMachine()
    for event in PATHS[start]:
        machine.apply(event)
    assert machine.state is start
    return machine


def documented() -> dict[tuple[State, Event], State | None]:
    """Return the table in the docstring of state.py. None: the event is not allowed."""
    lines = [line.split() for line in (state.__doc__ or "").splitlines() if line.startswith("    ")]
    events, rows = lines[0][1:], lines[1:]
    return {
        (State[row[0]], Event[event]): None if next_state == "-" else State[next_state]
        for row in rows
        for event, next_state in zip(events, row[1:], strict=True)
    }


def test_the_documented_table_holds_every_state_and_event() -> None:
    assert set(documented()) == set(itertools.product(State, Event))


@pytest.mark.parametrize(("start", "event"), list(itertools.product(State, Event)), ids=lambda value: value.name)
def test_a_transition(start: State, event: Event) -> None:
    machine, expected = machine_in(start), documented()[start, event]
    if expected is None:
        with pytest.raises(AssertionError, match=event.name):
            machine.apply(event)
        assert machine.state is start
    else:
        machine.apply(event)
        assert machine.state is expected


def test_what_the_others_were_told_is_final() -> None:
    """A goodbye cannot follow a diagnosis, nor a diagnosis a goodbye."""

    def reachable(start: State) -> set[State]:
        found = {start}
        while more := {end for (begin, _), end in state.TRANSITIONS.items() if begin in found} - found:
            found |= more
        return found

    assert reachable(State.LEFT) == {State.LEFT}
    for start in (State.ABORTING, State.ABORTING_LEAVING, State.ABORTED, State.ABORTED_LEAVING):
        assert State.LEFT not in reachable(start)
    assert reachable(State.NEW) == set(State)


def test_waiting_for_a_state() -> None:
    machine = machine_in(State.LEAVING)
    assert not machine.wait_for(ARE_OTHERS_TOLD, 0.01)
    threading.Timer(0.05, machine.apply, (Event.OTHERS_TOLD,)).start()
    assert machine.wait_for(ARE_OTHERS_TOLD, 10)


class FakeTransport:
    """This notes what the others are told. `exchange` waits for `wake` and returns no diagnosis."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._awake = threading.Event()

    def exchange(self, status: Status, timeouts: Timeouts, seconds: float) -> Diagnosis | None:
        assert self._awake.wait(10)
        self._awake.clear()
        return None

    def send_diagnosis(self, diagnosis: Diagnosis) -> None:
        self.told.append(diagnosis.text)

    def send_goodbye(self, error: str, is_shared: bool) -> None:
        self.told.append("goodbye")

    def wake(self) -> None:
        self._awake.set()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the exit codes with which the watchdog would have ended this process. Only its thread ends."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise SystemExit

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(watchdog, "SECONDS_TO_LEAVE", 0.05)
    return codes


def started() -> tuple[Watchdog, FakeTransport]:
    dog, transport = Watchdog(), FakeTransport()
    dog.start(transport)
    return dog, transport


def join_watchdogs() -> None:
    for thread in threading.enumerate():
        if thread.name == "watchdog":
            thread.join(10)
            assert not thread.is_alive()


def test_abort_and_leave_at_once_have_one_outcome(exits: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = set()
    for _ in range(50):
        exits.clear()
        dog, transport = started()
        barrier = threading.Barrier(2)

        def abort(dog: Watchdog = dog, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            dog.abort("the lock was lost")

        other = threading.Thread(target=abort)
        other.start()
        barrier.wait()
        dog.leave()
        other.join()
        join_watchdogs()
        errors = capsys.readouterr().err.count("the lock was lost; the run is ended on all ranks.")
        outcomes.add((dog._states.state, tuple(transport.told), tuple(exits), errors))
    assert outcomes <= {
        (State.LEFT, ("goodbye",), (), 0),
        (State.ABORTED_LEAVING, ("the lock was lost",), (EXIT_PEER_LOST,), 1),
        (State.ABORTED, ("the lock was lost",), (EXIT_PEER_LOST,), 1),
    }, outcomes


def test_abort_before_leave_and_leave_before_abort(exits: list[int]) -> None:
    dog, transport = started()
    dog.leave()
    dog.abort("too late")
    join_watchdogs()
    assert (dog._states.state, transport.told, exits) == (State.LEFT, ["goodbye"], [])

    dog, transport = started()
    dog.abort("in time")
    assert dog.explain_lost_peer(10)
    dog.leave()
    join_watchdogs()
    assert (dog._states.state, transport.told, exits) == (State.ABORTED_LEAVING, ["in time"], [EXIT_PEER_LOST])


def test_a_watchdog_that_was_not_started_does_nothing(exits: list[int]) -> None:
    dog = Watchdog()
    dog.abort("nobody hears this")
    assert not dog.explain_lost_peer(0)
    dog.leave()
    assert dog._states.state is State.NEW
    assert exits == []
