"""The fast way through torch for one row of numbers on a CPU. Knows no model.

Decoding multiplies one row by every weight matrix, so the memory decides its speed. For bf16 and
fp16, oneDNN's matrix product reads 25 GB/s where torch's own matrix-vector product reads 45; for
many rows oneDNN is far ahead. torch chooses by a switch of the whole process.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

# The switch is the process's; two engines must not turn it under each other.
_switch = threading.Lock()
_set = getattr(torch._C, "_set_mkldnn_enabled", None)


@contextlib.contextmanager
def one_row(enabled: bool) -> Iterator[None]:
    """Compute what is inside with torch's matrix-vector product instead of oneDNN.

    Args:
        enabled: whether that is wanted; without it torch chooses as always.
    """
    if _set is None:
        yield
        return
    with _switch:
        if not enabled or not torch._C._get_mkldnn_enabled():
            yield
            return
        _set(False)
        try:
            yield
        finally:
            _set(True)
