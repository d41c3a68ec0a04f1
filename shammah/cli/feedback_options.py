"""What can be written after `shammah feedback`."""

from __future__ import annotations

from typing import Any

from shammah.cli.arguments import Parser, action, command, json_option


def feedback(commands: Any) -> None:
    """`shammah feedback`."""
    feedback = command(commands, "feedback", "what was said about answers", "feedback:list_all")
    json_option(feedback)
    actions = feedback.add_subparsers(metavar="action")
    shown = action(actions, "list", "the newest first (the default)", "feedback:list_all")
    shown.add_argument("--limit", type=int, metavar="N", help="at most so many")
    _status(shown)
    show = action(actions, "show", "everything about one", "feedback:show")
    show.add_argument("number", type=int)
    edit = action(actions, "edit", "change what was said", "feedback:edit")
    edit.add_argument("number", type=int)
    edit.add_argument("--note", metavar="TEXT", help="what was wrong or right; empty removes it")
    edit.add_argument("--correction", metavar="TEXT", help="the right answer; empty removes it")
    edit.add_argument("--rating", choices=("critical", "medium", "good"))
    delete = action(actions, "delete", "take it out of training", "feedback:delete")
    delete.add_argument("number", type=int)
    for name, what in (
        ("accept", "the model's own revision is right"),
        ("refuse", "the model's own revision is wrong, and is not taught"),
    ):
        decide = action(actions, name, what, f"feedback:{name}")
        decide.add_argument("number", type=int)
    action(actions, "undo", "take back the last thing done", "feedback:undo")
    take = action(actions, "import", "take feedback from a JSONL file", "feedback:take")
    take.add_argument("file", help="a file, or - for the input")
    take.add_argument("--strict", action="store_true", help="one bad line means that none is taken")
    export = action(actions, "export", "write feedback as JSONL", "feedback:export")
    export.add_argument("file", nargs="?", default="-", help="a file; the output if missing or -")
    _status(export)


def _status(parser: Parser) -> None:
    parser.add_argument(
        "--status",
        choices=("buffered", "waiting", "training", "trained", "dropped", "deleted"),
        help="only these",
    )
