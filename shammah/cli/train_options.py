"""What can be written after `shammah train`: jobs of lessons, and recipes."""

from __future__ import annotations

import importlib
from typing import Any

from shammah.cli.arguments import Parser, action, command, json_option, trace_option

RECIPES = {
    "sft": "learn the answers of a data set",
    "dpo": "learn from pairs of answers which is the better",
    "reward": "learn to score answers, from pairs of them",
    "rl": "make answers likelier that a reward likes",
    "distill": "learn to answer as another model does",
    "feedback": "learn feedback in rounds, and see what is held",
}
"""Each `Recipe.kind` with its purpose: the recipes themselves are not imported for a help text."""


def train(commands: Any) -> None:
    train = command(commands, "train", "training jobs", "train:status")
    json_option(train)
    actions = train.add_subparsers(metavar="action")
    action(actions, "status", "what is running (the default)", "train:status")
    now = action(actions, "now", "train what the buffer holds", "train:now")
    now.add_argument(
        "--wait",
        action="store_true",
        help="run it here and wait for its end, or wait for the one that is queued or running; "
        "without this the next chat runs it",
    )
    now.add_argument(
        "--domain", metavar="NAME", help="what its adapter is for, instead of training.domain"
    )
    now.add_argument(
        "--hooks",
        metavar="NAMES",
        help="look at gradients: norm, distribution, flow, health, or several with commas",
    )
    now.add_argument(
        "--report",
        action="store_true",
        help="draw how gradients flowed through the layers at the end (with --wait)",
    )
    now.add_argument(
        "--logger",
        action="append",
        metavar="NAME",
        help="write it to this tool too, instead of tracking.loggers: rich (with --wait), "
        "tensorboard, wandb, mlflow, neptune, trackio, otel; may be repeated; `none` is none of "
        "them",
    )
    now.add_argument("--run-name", metavar="NAME", help="what the run is called there")
    now.add_argument("--run-group", metavar="NAME", help="the group it belongs to there")
    now.add_argument("--run-id", metavar="ID", help="go on with the run of this id there")
    now.add_argument(
        "--tag", action="append", metavar="WORD", help="to find it by; may be repeated"
    )
    trace_option(now)
    action(actions, "plan", "what the next job would do", "train:plan")
    action(actions, "cancel", "end the running job; its lessons stay", "train:cancel")
    action(actions, "queue", "list all jobs", "train:queue")
    resume = action(actions, "resume", "go on with what was interrupted", "train:resume")
    resume.add_argument(
        "name", nargs="?", metavar="RUN", help="a run of a recipe; without it the training job"
    )
    resume.add_argument("--wait", action="store_true", help="run it here and wait for its end")
    trace_option(resume)
    _recipes(actions)


class RecipeParser(Parser):
    """A parser whose options are those of a recipe, which is imported when one is asked for."""

    kind: str = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's, which knows by then what it parses."""
        options = importlib.import_module("shammah.cli.recipe_options")
        if self.kind:
            options.add_options(self, self.kind)
            self.kind = ""
        found, extra = super().parse_known_args(options.without_underscores(args or ()), namespace)
        if extra:
            self.error(options.unknown(self, extra))
        return found, extra


def _recipes(actions: Any) -> None:
    for kind, purpose in RECIPES.items():
        actions._parser_class = RecipeParser
        recipe = action(actions, kind, purpose, "recipes:train")
        assert isinstance(recipe, RecipeParser)
        recipe.kind = kind
        recipe.set_defaults(recipe=kind)
        _running(recipe)
        if kind != "feedback":
            _report(recipe)
    actions._parser_class = Parser
    run = action(actions, "run", "what a recipe file says (recipe.toml)", "recipes:train_file")
    run.add_argument("file", metavar="FILE", help='TOML with recipe = "sft" and its options')
    run.add_argument(
        "--set",
        action="append",
        metavar="NAME=VALUE",
        help="instead of the file's; may be repeated",
    )
    _running(run)
    _report(run)


def _running(parser: Parser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be trained, and train nothing"
    )
    parser.add_argument("--run-id", metavar="NAME", help="what the run is called; else by the time")


def _report(parser: Parser) -> None:
    parser.add_argument(
        "--report",
        action="store_true",
        help="draw how gradients flowed through the layers at the end",
    )
