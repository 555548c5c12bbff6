"""Where the threads of this process are."""

from __future__ import annotations

import faulthandler
import sys
import threading
from pathlib import Path
from types import FrameType

WAITING_PLACES = ("torch/distributed/", "deepspeed/comm/")


def dump(folder: Path, rank: int) -> None:
    """Write the stack traces of all threads to `folder`/rank-N.txt, the one of the main thread last."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{rank}.txt").open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)


def place_of_main_thread() -> str:
    """Innermost Python frame, as "file.py:12 in function"."""
    frame = _frame_of(threading.main_thread())
    if frame is None:
        return ""
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"


def is_in_collective(thread: threading.Thread) -> bool:
    """Whether the thread waits in a function of torch.distributed or DeepSpeed's communication."""
    frame, depth = _frame_of(thread), 0
    while frame is not None and depth < 5:  # decorators and wrappers lie around the call itself
        if any(place in frame.f_code.co_filename for place in WAITING_PLACES):
            return True
        frame, depth = frame.f_back, depth + 1
    return False


def _frame_of(thread: threading.Thread) -> FrameType | None:
    return sys._current_frames().get(thread.ident) if thread.ident is not None else None
