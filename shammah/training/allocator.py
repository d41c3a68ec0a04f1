"""What the C library and oneDNN hold on to, kept small: a trainer lives beside a chat.

Linux with glibc only; elsewhere nothing happens. Knows nothing about training.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

KERNELS = 64


def limit_kernels() -> None:
    """Let oneDNN keep a few compiled kernels instead of a thousand, at half a megabyte each.

    It reads this once, at its first matrix product; a value that is already set stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))


def release_memory() -> None:
    """Give free heap pages back to the system; packs of different sizes leave many."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> ctypes._NamedFuncPointer | None:
    try:
        found: ctypes._NamedFuncPointer = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = [ctypes.c_size_t]
    return found
