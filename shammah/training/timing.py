"""What is timed is done when its time ends, where anybody looks."""

from __future__ import annotations

import torch

from shammah.tracking.trace import tracing_on


def finished(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, while a trace is written: it works on behind
    us, and its time would be counted elsewhere."""
    if tracing_on() and device.type == "cuda":
        torch.cuda.synchronize(device)
