"""How gradients flowed through the layers of a run, drawn from its own record."""

from __future__ import annotations

import sys

from shammah.cli.output import coloured, say
from shammah.paths import Paths
from shammah.repl.text import unicode_output
from shammah.repl.wording import runs as wording
from shammah.tracking.loggers.store import open_store

HOOK = "flow"
"""The hook that measures it."""


def say_flow(paths: Paths, run: str) -> None:
    """Draw it on stdout."""
    store = open_store(paths.data)
    try:
        found = store.summaries(run)
        say(wording.flow(found, coloured=coloured(), blocks=unicode_output(sys.stdout)))
    finally:
        store.close()
