"""What can be written after `shammah`. Light: argparse and nothing else.

Each subcommand names the function that runs it as text, which `main` imports.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from shammah.cli.adapter_options import adapters
from shammah.cli.arguments import Parser, action, command, json_option, model_options
from shammah.cli.data_options import data, evaluation
from shammah.cli.feedback_options import feedback
from shammah.cli.run_options import report, runs
from shammah.cli.train_options import train
from shammah.version import VERSION

EPILOG = """\
exit codes:
  0 done   1 failed   2 wrong usage, setting or input   3 storage   4 model   5 adapter
  6 feedback   7 training   130 interrupted   141 the reader of the output has gone

environment:
  SHAMMAH_HOME      one folder for settings and data, instead of the platform's own places
  VISUAL, EDITOR    the editor for corrections
  NO_COLOR          no colours
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; without a subcommand it is a chat.

    Raises:
        SystemExit: after `--help` or `--version` (0), or a wrong usage (2).
    """
    first = arguments[0] if arguments else ""
    if first not in ("-h", "--help", "--version") and (not first or first.startswith("-")):
        arguments = ["chat", *arguments]
    return build_parser().parse_args(arguments)


def build_parser() -> Parser:
    """The parser with every subcommand."""
    parser = Parser(
        prog="shammah",
        description="A terminal assistant on a local language model that learns from you. "
        "Without a command it opens the chat.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shammah {VERSION}")
    commands = parser.add_subparsers(metavar="command", required=True)
    _chat(commands)
    _ask(commands)
    train(commands)
    adapters(commands)
    runs(commands)
    report(commands)
    feedback(commands)
    _config(commands)
    _model(commands)
    _render(commands)
    data(commands)
    evaluation(commands)
    doctor = command(commands, "doctor", "check that everything is in place", "doctor:run")
    json_option(doctor)
    return parser


def _chat(commands: Any) -> None:
    chat = command(commands, "chat", "talk with the model (what no command does)", "chat:run")
    model_options(chat)
    chat.add_argument("--adapter", metavar="NAME", help="answer with this adapter, or `none`")
    chat.add_argument(
        "--no-train", action="store_true", help="run no training jobs behind this chat"
    )


def _render(commands: Any) -> None:
    render = command(
        commands,
        "render",
        "show what a model is really given",
        "render:run",
        description="The tokens of conversations, with what training learns of them marked. FILE "
        'holds {"messages": [...], "tools": [...]}, one object, or one on each line; - is the '
        "input.",
    )
    render.add_argument("file", metavar="FILE", help="JSON or JSONL, or -")
    render.add_argument(
        "--tokenizer", metavar="PATH", help="a folder or a Hub name; else that of the model"
    )
    render.add_argument(
        "--renderer", metavar="NAME", help="the format; else the one that fits the tokenizer"
    )
    render.add_argument(
        "--train-on",
        metavar="WHAT",
        default="last_assistant_message",
        help="last_assistant_message, all_assistant_messages, all_messages, all_tokens, "
        "all_user_and_system_messages, or customized",
    )
    render.add_argument(
        "--generate", action="store_true", help="the prompt that the next answer is written behind"
    )
    json_option(render, '{"tokens": [...], "weights": [...]} for each conversation')


def _ask(commands: Any) -> None:
    ask = command(
        commands,
        "ask",
        "answer one question, or each line of the input",
        "ask:run",
        description="The answer alone goes to stdout, everything else to stderr. Text that is "
        "piped in is the question, or follows it.",
    )
    ask.add_argument("question", nargs="*", help="the question; may come from the input instead")
    model_options(ask)
    ask.add_argument("--adapter", metavar="NAME", help="answer with this adapter, or `none`")
    ask.add_argument("--system", metavar="TEXT", help="the system message")
    ask.add_argument("--max-tokens", type=int, metavar="N", help="tokens of an answer at most")
    ask.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token")
    ask.add_argument("--seed", type=int, metavar="N", help="makes drawing repeatable")
    ask.add_argument(
        "--lines",
        action="store_true",
        help="answer each line of the input as a conversation of its own",
    )
    json_option(ask, "one JSON object for each answer, on one line")


def _config(commands: Any) -> None:
    config = command(commands, "config", "settings", "config:show")
    json_option(config)
    actions = config.add_subparsers(metavar="action")
    show = action(actions, "show", "every setting (the default)", "config:show")
    show.add_argument("section", nargs="?", default="", help="only those that begin so")
    get = action(actions, "get", "one value", "config:get")
    get.add_argument("key")
    change = action(actions, "set", "write one value, comments kept", "config:change")
    change.add_argument("key")
    change.add_argument("value")
    action(actions, "path", "where the file is", "config:path")


def _model(commands: Any) -> None:
    model = command(commands, "model", "the base model", "model:info")
    json_option(model)
    actions = model.add_subparsers(metavar="action")
    info = action(actions, "info", "what it is and takes (the default)", "model:info")
    info.add_argument("name", nargs="?", help="another than the configured one")
    card = action(actions, "card", "the same, and what its makers say of it", "model:card")
    card.add_argument("name", nargs="?", help="another than the configured one")
    named = action(actions, "register", "give a model a short name", "model:register")
    named.add_argument("name", help="letters, digits, _, . and -")
    named.add_argument("source", help="`embedded`, a folder, or a Hub name")
    named.add_argument("--revision", help="the branch, tag or commit on the Hub")
    named.add_argument("--renderer", metavar="NAME", help="how it is spoken to: template, ...")
    named.add_argument("--notes", metavar="TEXT", default="", help="what to remember of it")
    named.add_argument("--replace", action="store_true", help="also where the name is taken")
    action(actions, "list", "the models that have a short name", "model:models")
    gone = action(actions, "forget", "take a short name back; the files stay", "model:forget")
    gone.add_argument("name")
