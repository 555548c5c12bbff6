"""Forks multiprocessing's helper process where it would start an interpreter that imports torch, which takes seconds.

Loaders and pools are forked from that helper. A spare process is forked before a command opens or starts anything, so that it has none of
the command's sockets and threads. It waits, becomes the helper when one is asked for, and ends with its owner if none is.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import traceback
from collections.abc import Sequence
from multiprocessing import util
from typing import Never

HIGH = 512
"""No process of a test has so many open files. What came from the owner is kept from here on, until its own numbers are free."""

_spawn = util.spawnv_passfds
_owner_end: socket.socket | None = None


def fork_spare() -> None:
    """Fork a process that becomes this one's helper when multiprocessing asks for one."""
    global _owner_end
    owner_end, spare_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not (pid := os.fork()):
        owner_end.close()
        _become_helper(spare_end)
    spare_end.close()
    _owner_end = owner_end

    def spawn(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
        """Do what multiprocessing.util.spawnv_passfds does. The spare does it if it is there and the helper is asked for."""
        code, files = arguments[-1], [1, 2, *passed]
        if _owner_end is None or "multiprocessing.forkserver" not in code:
            return _spawn(path, arguments, passed)
        blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        task = {"code": code, "files": files, "blocked": blocked, "folder": os.getcwd(), "environment": dict(os.environ)}
        try:
            socket.send_fds(_owner_end, [json.dumps(task).encode()], files)
        except BrokenPipeError:  # a signal to all processes of the command has ended the spare
            return _spawn(path, arguments, passed)
        finally:
            leave_spare()
        return pid

    util.spawnv_passfds = spawn


def leave_spare() -> None:
    """Close this process's connection to the spare. A spare ends when none is left, and forks inherit their parent's."""
    global _owner_end
    if _owner_end is not None:
        _owner_end.close()
    _owner_end = None


def _become_helper(spare_end: socket.socket) -> Never:
    """Wait for the task, and do it with the owner's open files, folder, environment and blocked signals, as after an exec."""
    code = 1
    try:
        task, files, *_ = socket.recv_fds(spare_end, 1 << 20, 64)
        spare_end.close()
        if task:
            wanted = json.loads(task)
            high = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in files]
            for file in files:
                os.close(file)
            for file, number in zip(high, wanted["files"], strict=True):
                os.dup2(file, number)
                os.close(file)
            os.environ.clear()
            os.environ.update(wanted["environment"])
            os.chdir(wanted["folder"])
            signal.pthread_sigmask(signal.SIG_SETMASK, wanted["blocked"])
            exec(wanted["code"], {})
        code = 0
    except SystemExit:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
