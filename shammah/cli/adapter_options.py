"""What can be written after `shammah adapters`."""

from __future__ import annotations

from typing import Any

from shammah.cli.arguments import action, command, json_option, trace_option


def adapters(commands: Any) -> None:
    """`shammah adapters`."""
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
