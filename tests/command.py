"""The `shammah` command, run as a process on a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def shammah(
    home: Path, *arguments: str, given: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "shammah", *arguments],
        cwd=ROOT,
        env={**os.environ, "SHAMMAH_HOME": str(home), **environment},
        input=given if given is not None else "",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def shammah_json(home: Path, *arguments: str) -> Any:
    """Run a command with --json that must succeed, and what it said."""
    done = shammah(home, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
