"""Ending the process without waiting for what has nothing left to do.

Taking a Python with torch in it apart takes more than a second, and a thread that imports torch
cannot be stopped. Everything that matters (database, adapters, checkpoints) is on disk by then.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def leave_at_once(code: int) -> NoReturn:
    """End the process with this exit code, once what was printed is out."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
