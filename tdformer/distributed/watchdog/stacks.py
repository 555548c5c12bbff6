"""Shows where the threads of this process are."""

from __future__ import annotations

import faulthandler
import sys
import threading
from pathlib import Path
from types import FrameType

COLLECTIVE_PATHS = ("torch/distributed/", "deepspeed/comm/")
"""Source files of functions in which a rank waits for the others have one of these in their path."""
MAX_WRAPPERS = 5
"""Decorators and wrappers add frames around a collective operation, but not more than this."""


def dump(folder: Path, rank: int) -> None:
    """Write the stack traces of all threads to `folder`/rank-N.txt. The main thread comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{rank}.txt").open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)


def place_of_main_thread() -> str:
    """Return the main thread's innermost Python frame, as "file.py:12 in function"."""
    frame = _frame_of(threading.main_thread())
    if frame is None:
        return ""
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"


def is_in_collective(thread: threading.Thread) -> bool:
    """Return True if the thread is in a function of torch.distributed or of DeepSpeed's communication."""
    frame, depth = _frame_of(thread), 0
    while frame is not None and depth < MAX_WRAPPERS:
        if any(path in frame.f_code.co_filename for path in COLLECTIVE_PATHS):
            return True
        frame, depth = frame.f_back, depth + 1
    return False


def _frame_of(thread: threading.Thread) -> FrameType | None:
    return sys._current_frames().get(thread.ident) if thread.ident is not None else None
