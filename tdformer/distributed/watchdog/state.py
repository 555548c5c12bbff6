"""The states of a watchdog, and the events that lead from one to the next.

Two threads of a process share a watchdog: the main thread and the watchdog's own. Each event belongs to one of them. START: the main
thread starts the watchdog. MAIN_LEAVES: the main thread goes on without the other ranks. DIAGNOSED: the watchdog's thread knows that
a rank failed. OTHERS_TOLD: the watchdog's thread has told the other ranks.

    state             START    MAIN_LEAVES       DIAGNOSED         OTHERS_TOLD
    NEW               RUNNING  -                 -                 -
    RUNNING           -        LEAVING           ABORTING          -
    LEAVING           -        LEAVING           ABORTING_LEAVING  LEFT
    LEFT              -        LEFT              -                 -
    ABORTING          -        ABORTING_LEAVING  -                 ABORTED
    ABORTING_LEAVING  -        ABORTING_LEAVING  -                 ABORTED_LEAVING
    ABORTED           -        ABORTED_LEAVING   -                 -
    ABORTED_LEAVING   -        ABORTED_LEAVING   -                 -

A run ends well for this rank in LEFT: the others were told a goodbye. It is aborted in ABORTED and ABORTED_LEAVING: the others were
told a diagnosis. No path leads from one end to the other, so that the others are told one thing only.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from enum import Enum, auto


class Event(Enum):
    """Names what can happen to a watchdog."""

    START = auto()
    MAIN_LEAVES = auto()
    DIAGNOSED = auto()
    OTHERS_TOLD = auto()


class State(Enum):
    """This is what a watchdog does. The last four names say whether the others have been told and whether the main thread leaves."""

    NEW = auto()
    """It has not started."""
    RUNNING = auto()
    """It exchanges messages with the other ranks. No rank has failed."""
    LEAVING = auto()
    """The main thread leaves. The others have to be told."""
    LEFT = auto()
    """The others were told that this rank leaves. The watchdog's thread has ended."""
    ABORTING = auto()
    """A rank failed. The others are being told. The main thread may be anywhere, or hang."""
    ABORTING_LEAVING = auto()
    """A rank failed. The others are being told. The main thread leaves."""
    ABORTED = auto()
    """A rank failed. The others were told. The main thread may be anywhere, or hang."""
    ABORTED_LEAVING = auto()
    """A rank failed. The others were told. The main thread leaves."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.NEW, Event.START): State.RUNNING,
    (State.RUNNING, Event.MAIN_LEAVES): State.LEAVING,
    (State.RUNNING, Event.DIAGNOSED): State.ABORTING,
    (State.LEAVING, Event.MAIN_LEAVES): State.LEAVING,
    (State.LEAVING, Event.DIAGNOSED): State.ABORTING_LEAVING,
    (State.LEAVING, Event.OTHERS_TOLD): State.LEFT,
    (State.LEFT, Event.MAIN_LEAVES): State.LEFT,
    (State.ABORTING, Event.MAIN_LEAVES): State.ABORTING_LEAVING,
    (State.ABORTING, Event.OTHERS_TOLD): State.ABORTED,
    (State.ABORTING_LEAVING, Event.MAIN_LEAVES): State.ABORTING_LEAVING,
    (State.ABORTING_LEAVING, Event.OTHERS_TOLD): State.ABORTED_LEAVING,
    (State.ABORTED, Event.MAIN_LEAVES): State.ABORTED_LEAVING,
    (State.ABORTED_LEAVING, Event.MAIN_LEAVES): State.ABORTED_LEAVING,
}
IS_DIAGNOSED = {State.ABORTING, State.ABORTING_LEAVING, State.ABORTED, State.ABORTED_LEAVING}
ARE_OTHERS_TOLD = {State.LEFT, State.ABORTED, State.ABORTED_LEAVING}
IS_MAIN_LEAVING = {State.LEAVING, State.LEFT, State.ABORTING_LEAVING, State.ABORTED_LEAVING}


class StateMachine:
    """This holds the state of one watchdog. Any thread may call its functions."""

    def __init__(self) -> None:
        self._state, self._changed = State.NEW, threading.Condition()

    @property
    def state(self) -> State:
        """Return the current state. Another thread may change it at any moment."""
        return self._state

    def apply(self, event: Event) -> None:
        """Go to the next state. An event that the table does not allow here is an error of the program (AssertionError)."""
        with self._changed:
            assert (self._state, event) in TRANSITIONS, f"{event} in {self._state}"
            self._state = TRANSITIONS[self._state, event]
            self._changed.notify_all()

    def wait_for(self, states: Collection[State], seconds: float) -> bool:
        """Wait until the state is one of these. Returns False if it is not within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state in states, seconds)
