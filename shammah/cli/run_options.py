"""What can be written after `shammah runs` and `shammah report`."""

from __future__ import annotations

from typing import Any

from shammah.cli.arguments import action, command, json_option


def runs(commands: Any) -> None:
    """`shammah runs`."""
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


def report(commands: Any) -> None:
    """`shammah report`."""
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
