"""How the shell commands speak: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from shammah.errors import ShammahError
from shammah.repl.text import harmless, styled


def say(text: str) -> None:
    """A result."""
    print(text)


def tell(text: str) -> None:
    """Something beside the result."""
    print(harmless(text), file=sys.stderr, flush=True)


def emit(value: Any) -> None:
    """A result as JSON on one line, at once."""
    print(json.dumps(value, ensure_ascii=False, default=_plain), flush=True)


def fail(error: ShammahError) -> None:
    """What went wrong and what to do, in red where colours are."""
    text = harmless(f"{error.message}\n{error.hint}" if error.hint else error.message)
    print(styled(text, "red", coloured=coloured(sys.stderr)), file=sys.stderr)


def coloured(stream: TextIO | None = None) -> bool:
    """Whether escape sequences may be written to a stream (stdout)."""
    return (
        (stream or sys.stdout).isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")
