"""What every command's options are made with. Light: argparse and nothing else."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import Any, NoReturn

LOG_LEVEL = "what the log file is told: debug, info, warning or error, instead of logging.level"


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest word where a word is not known."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if found:
            word, known = found.group(1), re.findall(r"[\w-]+", found.group(2))
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}? " if near else ""
            message = f"{self.prog} has no {word!r}. {hint}It takes {', '.join(known)}."
        self.exit(2, f"{message}\n{self.prog} --help tells more.\n")


def command(commands: Any, name: str, summary: str, run: str, **options: Any) -> Parser:
    made: Parser = commands.add_parser(
        name, help=summary, **{"description": summary.capitalize() + ".", **options}
    )
    made.add_argument("--config", metavar="FILE", help="another settings file")
    if not run.startswith("config:"):
        made.add_argument("--log-level", metavar="LEVEL", help=LOG_LEVEL)
    made.set_defaults(run=f"shammah.cli.{run}")
    return made


def action(actions: Any, name: str, summary: str, run: str) -> Parser:
    made: Parser = actions.add_parser(name, help=summary, description=summary.capitalize() + ".")
    # Suppressed, so that an option before the action is not overwritten by its absence after it.
    made.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    if not run.startswith("config:"):
        made.add_argument(
            "--log-level", metavar="LEVEL", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    made.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="JSON instead of text"
    )
    made.set_defaults(run=f"shammah.cli.{run}")
    return made


def json_option(parser: Parser, summary: str = "JSON instead of text") -> None:
    parser.add_argument("--json", action="store_true", help=summary)


def model_options(parser: Parser) -> None:
    parser.add_argument(
        "--model", metavar="NAME", help="`embedded`, a registered name, a folder, or a Hub name"
    )
    parser.add_argument("--renderer", metavar="NAME", help="how conversations are written for it")
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"))
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp16", "fp32"))


def trace_option(parser: Parser) -> None:
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="with --wait: write where its time goes, for ui.perfetto.dev or chrome://tracing",
    )
