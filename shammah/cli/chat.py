"""`shammah` and `shammah chat`."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from shammah.cli.context import model_changes, paths_of, settings_of, start_log
from shammah.repl.chat import run_chat

if TYPE_CHECKING:
    from shammah.settings import Settings


def run(options: Namespace) -> int:
    paths = paths_of(options)

    def load() -> Settings:
        start_log(paths)  # else what goes wrong behind the prompt is written across it
        settings = settings_of(paths, model_changes(options))
        start_log(paths, settings)
        return settings

    return run_chat(load, paths, train=not options.no_train, adapter=options.adapter)
