"""What can be written after `shammah`. Light: argparse and nothing else.

Each subcommand names the function that runs it as text, which `main` imports.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from shammah.cli.arguments import Parser, action, command, json_option, model_options, trace_option
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
    _adapters(commands)
    _runs(commands)
    _report(commands)
    _feedback(commands)
    _config(commands)
    _model(commands)
    _render(commands)
    _data(commands)
    _eval(commands)
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


def _adapters(commands: Any) -> None:
    adapters = command(commands, "adapters", "what was learned", "adapters:list_all")
    json_option(adapters)
    actions = adapters.add_subparsers(metavar="action")
    action(actions, "list", "every adapter (the default)", "adapters:list_all")
    show = action(actions, "show", "everything about one", "adapters:show")
    show.add_argument("name")
    compare = action(actions, "compare", "how two differ, and how they do", "adapters:compare")
    compare.add_argument("name")
    compare.add_argument("other", nargs="?", help="its parent, unless another one is named")
    compare.add_argument(
        "--answers",
        metavar="N",
        help="show up to N lessons that they answer differently (10); 0 loads no model",
    )
    rebuild = action(
        actions, "rebuild", "train every lesson that stands anew, from the base", "train:rebuild"
    )
    rebuild.add_argument("--wait", action="store_true", help="run it here and wait for its end")
    trace_option(rebuild)
    without = action(
        actions, "without", "take one round out of an adapter trained as differences",
        "adapters:without",
    )  # fmt: skip
    without.add_argument("name")
    without.add_argument("round", type=int, help="its number, from 1; `adapters show` lists them")
    without.add_argument("--activate", action="store_true", help="answer with it from now on")
    merge = action(actions, "merge", "combine several into a new one", "adapters:merge")
    merge.add_argument("names", nargs="+", metavar="name", help="two or more of one base model")
    merge.add_argument(
        "--weights", metavar="W,W", help="how much of each, such as 0.7,0.3; equal shares if not"
    )
    merge.add_argument(
        "--method",
        metavar="NAME",
        help="cat (exact, the default) or svd; or linear, ties, dare_ties, dare_linear, "
        "magnitude_prune, the last four also with _svd",
    )
    merge.add_argument(
        "--rank", metavar="N", help="recompress to this rank (svd, or a method with _svd)"
    )
    merge.add_argument(
        "--density", metavar="D", help="share of the numbers that ties, dare and prune keep"
    )
    merge.add_argument("--name", metavar="NAME", help="what to call it; the time if not given")
    merge.add_argument("--activate", action="store_true", help="answer with it from now on")
    load = action(actions, "load", "answer with it from now on", "adapters:load")
    load.add_argument("name")
    action(actions, "unload", "answer with the base model", "adapters:unload")
    action(actions, "rollback", "go back to the one before", "adapters:rollback")
    rename = action(actions, "rename", "give it another name", "adapters:rename")
    rename.add_argument("old")
    rename.add_argument("new")
    domain = action(actions, "domain", "show or set what it is for", "adapters:domain")
    domain.add_argument("name")
    domain.add_argument("domain", nargs="?", help="such as rust or sql")
    domain.add_argument("--clear", action="store_true", help="it is for no domain")
    delete = action(actions, "delete", "remove it (not the active one)", "adapters:delete")
    delete.add_argument("name")
    prune = action(actions, "prune", "remove the worst of too many", "adapters:prune")
    prune.add_argument("--keep", metavar="N", help="how many to keep, instead of adapters.max_kept")
    prune.add_argument("--dry-run", action="store_true", help="only say which, and why")
    export = action(actions, "export", "write it in PEFT's layout", "adapters:export")
    export.add_argument("name")
    export.add_argument("folder")
    export.add_argument(
        "--with-lessons", action="store_true", help="with the text of what was taught"
    )
    take = action(actions, "import", "take one in PEFT's layout", "adapters:take")
    take.add_argument("folder")


def _runs(commands: Any) -> None:
    runs = command(commands, "runs", "what training measured", "runs:list_all")
    json_option(runs)
    actions = runs.add_subparsers(metavar="action")
    action(actions, "list", "every run, the newest first (the default)", "runs:list_all")
    one = "job-3, 3, its name or its id; the newest if not given"
    show = action(actions, "show", "one run: settings, metrics, how they went", "runs:show")
    show.add_argument("name", nargs="?", metavar="run", help=one)
    compare = action(actions, "compare", "runs side by side", "runs:compare")
    compare.add_argument("names", nargs="+", metavar="run", help="two or more")
    plot = action(actions, "plot", "draw loss and learning rate here", "runs:draw")
    plot.add_argument("name", nargs="?", metavar="run", help=one)
    plot.add_argument(
        "--metric", action="append", metavar="NAME", help="draw this instead; may be repeated"
    )
    plot.add_argument("--width", type=int, metavar="N", help="columns; else those of the terminal")
    tail = action(actions, "tail", "the last steps of a run", "runs:tail")
    tail.add_argument("name", nargs="?", metavar="run", help=one)
    tail.add_argument("-n", "--lines", type=int, metavar="N", default=10, help="so many (10)")
    tail.add_argument(
        "-f", "--follow", action="store_true", help="go on with what is measured, to the run's end"
    )
    story = action(actions, "story", "what happened: lessons, answers, checks", "runs:story")
    story.add_argument(
        "name", nargs="?", metavar="run", help=f"{one}; or the folder of an evaluation"
    )
    story.add_argument("--depth", type=int, metavar="N", help="open scopes only so deep")
    story.add_argument("--html", metavar="FILE", help="write it as a page that folds")
    delete = action(actions, "delete", "forget what runs measured", "runs:delete")
    delete.add_argument("names", nargs="+", metavar="run")


def _report(commands: Any) -> None:
    report = command(
        commands,
        "report",
        "a run, an adapter or an evaluation as one page to hand on",
        "report:run",
        description="Writes one HTML file that needs nothing beside it: curves, evaluation, "
        "lessons with the answers before and after, lineage, settings.",
    )
    report.add_argument(
        "name",
        nargs="?",
        metavar="what",
        help="job-3, 3, the name of a run or an adapter, or the folder of an evaluation; the "
        "newest run if not given",
    )
    report.add_argument("--out", metavar="FILE", help="the file; else report-NAME.html here")
    report.add_argument(
        "--png", metavar="FOLDER", help="write the pictures there too (extra `report`)"
    )
    report.add_argument(
        "--no-lessons", action="store_true", help="leave out what the user said and was answered"
    )
    report.add_argument("--open", action="store_true", help="show it in the browser")
    json_option(report, "where the file is and what is in it")


def _feedback(commands: Any) -> None:
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


def _data(commands: Any) -> None:
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


def _eval(commands: Any) -> None:
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


SOURCE = (
    "a file (.jsonl, .json, .csv, .tsv, .parquet, .txt, .gz), a folder, a pattern, or a "
    "data set of the Hub: owner/name, with :config and @revision where wanted"
)


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


def _status(parser: Parser) -> None:
    parser.add_argument(
        "--status",
        choices=("buffered", "waiting", "training", "trained", "dropped", "deleted"),
        help="only these",
    )
