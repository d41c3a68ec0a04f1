"""What can be written after `shammah data` and `shammah eval`, which read a data set alike."""

from __future__ import annotations

from typing import Any

from shammah.cli.arguments import Parser, action, command, json_option, model_options

SOURCE = (
    "a file (.jsonl, .json, .csv, .tsv, .parquet, .txt, .gz), a folder, a pattern, or a "
    "data set of the Hub: owner/name, with :config and @revision where wanted"
)


def data(commands: Any) -> None:
    """`shammah data`."""
    data = command(commands, "data", "look at data sets", "data:show")
    json_option(data)
    actions = data.add_subparsers(metavar="action", required=True)
    show = action(actions, "show", "print rows as the conversations they become", "data:show")
    _source(show)
    show.add_argument("--take", type=int, metavar="N", default=3, help="so many (3)")
    show.add_argument("--skip", type=int, metavar="N", default=0, help="pass over so many first")
    show.add_argument("--shuffle", type=int, metavar="SEED", help="in the order that a seed gives")
    show.add_argument("--skip-bad", action="store_true", help="pass over bad rows and count them")
    check = action(actions, "check", "read every row: how many, how long, which bad", "data:check")
    _source(check)


def evaluation(commands: Any) -> None:
    """`shammah eval`."""
    made = command(
        commands,
        "eval",
        "score the model's answers to a data set",
        "evaluate:run",
        description="Answers each example of a data set greedily and scores it. A table goes to "
        "stdout, progress to stderr, and a row for each example to a folder, where a run that was "
        "ended goes on with --resume. Ends with 1 where a --require is missed.",
    )
    made.add_argument("--data", metavar="SOURCE", required=True, help=SOURCE)
    _format(made)
    made.add_argument("--skip-bad", action="store_true", help="pass over bad rows and count them")
    made.add_argument("--limit", type=int, metavar="N", help="only so many rows")
    made.add_argument("--shuffle", type=int, metavar="SEED", help="in the order that a seed gives")
    made.add_argument(
        "--scorers",
        action="append",
        required=True,
        metavar="NAMES",
        help="such as exact_match,numeric; one with parameters by itself, as regex:^yes or "
        'JSON {"name": ...}; may be repeated. An unknown one lists them all',
    )
    model_options(made)
    made.add_argument(
        "--adapter",
        metavar="NAME",
        help="answer with this adapter, or `base` for none; else with the active one",
    )
    made.add_argument(
        "--run",
        dest="of_run",
        metavar="RUN",
        help="answer with the best checkpoint of a training run: its folder, or a job's number",
    )
    made.add_argument(
        "--against",
        metavar="OTHER",
        help="compare with `base`, with another adapter, or with the folder of an earlier run",
    )
    made.add_argument("--system", metavar="TEXT", help="a system message before each prompt")
    made.add_argument(
        "--max-tokens", type=int, metavar="N", default=256, help="tokens of an answer (256)"
    )
    made.add_argument(
        "--temperature", type=float, metavar="T", default=0.0, help="0 (the default) is greedy"
    )
    made.add_argument("--seed", type=int, metavar="N", default=0, help="of drawing (0)")
    made.add_argument(
        "--repeat", type=int, metavar="N", default=1, help="so many runs, each with the next seed"
    )
    made.add_argument(
        "--batch", type=int, metavar="N", default=16, help="answers decoded together (16)"
    )
    made.add_argument("--group", metavar="KEY", help="figures for each value of a metadata key")
    made.add_argument(
        "--pass-at", type=float, metavar="S", default=0.5, help="a score that passes (0.5)"
    )
    made.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="TARGET",
        help="such as numeric>=0.6 or error_rate<=0.05, or a .toml file with a table [targets]; "
        "may be repeated",
    )
    made.add_argument("--judge", metavar="MODEL", help="a chat model for scorers that ask one")
    made.add_argument("--judge-url", metavar="URL", help="where it is: an OpenAI API, up to /v1")
    made.add_argument("--flips", type=int, metavar="N", default=5, help="flips shown (5)")
    made.add_argument("--out", metavar="FOLDER", help="where the rows go; else in the data folder")
    made.add_argument("--resume", action="store_true", help="go on with the run in --out")
    made.add_argument(
        "--retry-errors", action="store_true", help="with --resume: ask again what failed"
    )
    json_option(made)


def _source(parser: Parser) -> None:
    parser.add_argument("source", help=SOURCE)
    _format(parser)


def _format(parser: Parser) -> None:
    parser.add_argument("--split", metavar="NAME", help="such as train or test")
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="scifact, fever, gsm8k, prompt_completion, prompt, chat, preference, feedback, or "
        "module:function; told by the columns if not given",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the format, such as calculator=strip; may be repeated",
    )
