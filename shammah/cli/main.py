"""The `shammah` command: from arguments to an exit code.

The one place where an error becomes a printed message. Imports what a subcommand needs only when
it runs, so that the prompt and `--help` are there at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from shammah.cli.parser import parse
from shammah.errors import ShammahError
from shammah.repl.leaving import leave_at_once

BROKEN_PIPE = 141
"""What a program ends with whose reader has gone (128 + SIGPIPE)."""
INTERRUPTED = 130

ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # Looking for plugins reads the metadata of every installed package: 15 ms before the prompt.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}


def command() -> NoReturn:
    """What the shell runs."""
    code = main()
    if "torch" in sys.modules:
        leave_at_once(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as in `shammah ask ... >&-`
            stream = Path(os.devnull).open("r" if name == "stdin" else "w")  # noqa: SIM115
            setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        code = _run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain at exit when it flushes what nobody reads.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    return code


def _run(options: Namespace) -> int:
    from shammah.cli.output import fail

    try:
        module, _, function = options.run.partition(":")
        run: Callable[[Namespace], int] = getattr(importlib.import_module(module), function)
        return run(options)
    except BrokenPipeError:
        raise
    except ShammahError as error:
        fail(error)
        return error.exit_code
    except Exception:
        import logging

        from shammah.cli.context import log_file

        logging.getLogger("shammah").exception("the command failed")
        fail(
            ShammahError(
                "Something went wrong; this is a fault of the program.",
                hint=f"{log_file()} says more.",
            )
        )
        return 1
