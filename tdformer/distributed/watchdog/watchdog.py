"""The watchdog is a thread on every rank. It notices that another rank died or that any rank hangs, and then ends this process.

It can do so even if the main thread hangs. state.py says how the two threads agree on the end.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tdformer.distributed.watchdog.diagnosis import EXIT_PEER_LOST, Diagnosis, Timeouts
from tdformer.distributed.watchdog.progress import Progress
from tdformer.distributed.watchdog.report import Report
from tdformer.distributed.watchdog.state import ARE_OTHERS_TOLD, IS_DIAGNOSED, IS_MAIN_LEAVING, Event, State, StateMachine
from tdformer.distributed.watchdog.transport import Address, Transport

HEARTBEAT_SECONDS = 1.0
SECONDS_TO_LEAVE = 8.0
"""After a rank died, the main threads of the others get this long to leave by themselves and to close what is open.

Together with the seconds in report.py and server.py this stays below the launcher's GRACE_SECONDS.
"""
SECONDS_BEFORE_LAST_RESORT = 30.0
"""The last resort comes at most this long after the timeout."""


class Watchdog:
    """The watchdog of one rank. It does nothing until `start`. Until `configure` it has the default timeouts and nowhere to write.

    The main thread reports what it does to `progress`.
    """

    def __init__(self, rank: int = 0) -> None:
        self.rank, self.progress = rank, Progress()
        self._states, self._report = StateMachine(), Report(rank)
        self._timeouts = Timeouts()
        self._transport: Transport | None = None
        self._goodbye: tuple[str, bool] = ("", False)
        self._requested: Diagnosis | None = None
        self._diagnosis: Diagnosis | None = None

    def configure(
        self,
        timeouts: Timeouts,
        stacks_folder: Path | None = None,
        advice: Callable[[], str] = str,
        closing: Callable[[], object] = str,
    ) -> None:
        """Set what the configuration decides.

        `stacks_folder`: the folder for stack traces, None for stderr. `advice` returns how to go on; the user reads it after what
        happened. `closing` is called, on the rank that speaks, if the main thread cannot close things any more.
        """
        self._timeouts = timeouts
        self._report.configure(stacks_folder, advice, closing)

    # --- called by other threads -----------------------------------------------------------------------------

    def start(self, transport: Transport, server: Address | None = None) -> None:
        """Start the thread. `server`: where rank 0 is."""
        self._transport = transport
        self.progress.on_phase = transport.wake
        self._report.set_server(server)
        self._states.apply(Event.START)
        threading.Thread(target=self._run, args=(transport,), name="watchdog", daemon=True).start()

    def abort(self, reason: str) -> None:
        """End the run on all ranks. Only rank 0 may call this, from any thread.

        This has no effect once the others were told that this rank leaves.
        """
        self._requested = Diagnosis("failed", (self.rank,), reason)
        if self._transport:
            self._transport.wake()

    def explain_lost_peer(self, seconds: float) -> bool:
        """Return True if the other ranks do not answer because one failed and this is known within `seconds`. Then tell the user."""
        if self._states.state is State.NEW or not self._states.wait_for(IS_DIAGNOSED, seconds):
            return False
        assert self._diagnosis is not None
        self._states.apply(Event.MAIN_LEAVES)
        self._report.tell(self._diagnosis)
        if self.rank:  # rank 0 closes what is open when its main thread ends
            self._report.close(self._diagnosis)
        return True

    def leave(self, error: str = "", is_shared: bool = False) -> None:
        """Tell the others that this rank needs them no more: its work is done, or it ends with `error`.

        `is_shared`: all ranks have this error. Returns when the others were told, after SECONDS_TO_LEAVE at the latest.
        """
        if self._transport is None:
            return
        if self._states.state is State.RUNNING:
            self._goodbye = (error, is_shared)
        self._states.apply(Event.MAIN_LEAVES)
        self._transport.wake()
        self._states.wait_for(ARE_OTHERS_TOLD, SECONDS_TO_LEAVE)

    # --- the thread --------------------------------------------------------------------------------------------

    def _run(self, transport: Transport) -> None:
        diagnosis = None
        while self._states.state is State.RUNNING and diagnosis is None:
            self._arm_last_resort()
            diagnosis = transport.exchange(self.progress.status(), self._timeouts, HEARTBEAT_SECONDS) or self._requested
        faulthandler.cancel_dump_traceback_later()
        if diagnosis is not None:
            self._abort(transport, diagnosis)
        transport.send_goodbye(*self._goodbye)
        self._states.apply(Event.OTHERS_TOLD)

    def _arm_last_resort(self) -> None:
        """Set faulthandler's timer: it needs no Python, so it works if one call never lets this thread run again.

        The timer writes the stack traces to stderr and ends the process.
        """
        timeout_s = self._timeouts.for_status(self.progress.status())
        if math.isfinite(timeout_s):
            later = timeout_s + min(2 * timeout_s, SECONDS_BEFORE_LAST_RESORT)
            faulthandler.dump_traceback_later(later, exit=True, file=sys.__stderr__ or 2)

    def _abort(self, transport: Transport, diagnosis: Diagnosis) -> NoReturn:
        if diagnosis.is_hang:
            self._report.write_stacks()
        self._diagnosis = diagnosis
        self._states.apply(Event.DIAGNOSED)
        transport.send_diagnosis(diagnosis)
        self._states.apply(Event.OTHERS_TOLD)
        if not diagnosis.is_hang and self._states.wait_for(IS_MAIN_LEAVING, SECONDS_TO_LEAVE):
            time.sleep(SECONDS_TO_LEAVE)  # normally the main thread ends the process within this time
        self._report.tell(diagnosis)
        self._report.close(diagnosis)
        os._exit(EXIT_PEER_LOST)
