"""The `shammah` command, run as a process on a home of its own, and what is put into homes."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prepared_process import Prepared

from shammah.paths import Paths
from shammah.settings_file import set_value

ROOT = Path(__file__).parents[1]
BEGAN = dict(os.environ)
"""The environment before the libraries that tests import have put something into it."""
SECONDS = 400.0
"""What a command gets, on a machine that has other things to do."""
LESSONS_ALONE = {
    "training.rephrasings": "2",
    "training.near_misses": "0",
    "training.replay": "0",
    "training.hold": "0",
}
"""Settings of a job that takes no care of other answers, which is most of its time: for tests of
what lies around the training."""


def shammah(
    home: Path, *arguments: str, given: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end.

    Its process is a copy of one that has imported the libraries, which saves most of its time; one
    with an environment of its own is started anew, as `started` always does.
    """
    if sys.platform == "linux" and not environment:
        wanted = {**BEGAN, "SHAMMAH_HOME": str(home)}
        return prepared().run(arguments, wanted, given or "", SECONDS)
    return started(home, *arguments, given=given, **environment)


def started(
    home: Path, *arguments: str, given: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, in a Python that begins with it."""
    return subprocess.run(
        [sys.executable, "-m", "shammah", *arguments],
        cwd=ROOT,
        env={**BEGAN, "SHAMMAH_HOME": str(home), **environment},
        input=given if given is not None else "",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def shammah_json(home: Path, *arguments: str) -> Any:
    """Run a command with --json that must succeed, and what it said."""
    done = shammah(home, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def change(home: Path, settings: Mapping[str, str]) -> None:
    """Change settings of a home, dotted key -> value as typed."""
    for key, value in settings.items():
        set_value(Paths(home, home).config_file, key, value)


def teach(home: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Put feedback into a home, as `shammah feedback import` does."""
    file = home / "lessons.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    shammah_json(home, "feedback", "import", str(file))


@functools.cache
def prepared() -> Prepared:
    return Prepared(BEGAN)
