"""The list of slash commands. `/help`, completion, documentation and tests read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from shammah.adapters.merge_methods import METHODS
from shammah.paths import Paths
from shammah.repl import text
from shammah.repl.adapter_commands import SUBCOMMANDS as ADAPTER_SUBCOMMANDS
from shammah.repl.adapter_commands import adapters
from shammah.repl.completion import adapter_names, model_names
from shammah.repl.conversation_commands import clear, history, leave, retry, save, stats, system
from shammah.repl.evaluation_commands import check
from shammah.repl.feedback_commands import SUBCOMMANDS as FEEDBACK_SUBCOMMANDS
from shammah.repl.feedback_commands import correct, feedback, rate
from shammah.repl.registry import FILES, Chat, Command, Complete, find
from shammah.repl.settings_commands import config, model
from shammah.repl.training_commands import SUBCOMMANDS as TRAIN_SUBCOMMANDS
from shammah.repl.training_commands import train
from shammah.settings import Settings, keys

LONG_USAGE = 24
"""A longer one is shown by `/help NAME` alone."""


async def show_help(chat: Chat, argument: str) -> None:
    """`/help`: the list, or one command in detail."""
    if argument:
        command = find(COMMANDS, argument if argument.startswith("/") else f"/{argument}")
        chat.say(f"{chat.styled(command.usage, 'bold')}\n{command.detail}")
        return
    lines = [
        (c.usage if len(c.usage) <= LONG_USAGE else f"{c.name} ...", c.summary)
        for c in COMMANDS.values()
    ]
    chat.say(text.table(["command", "what it does"], lines, coloured=chat.screen.coloured))
    chat.say(KEYS)


KEYS = """\
Enter sends, Alt-Enter starts a new line, Tab completes, Ctrl-R searches what you typed before.
Ctrl-C stops an answer or clears the line, Ctrl-D leaves. /help NAME tells more about a command."""


def _adapters(words: Sequence[str], paths: Paths) -> Iterable[str]:
    if not words:
        return ADAPTER_SUBCOMMANDS
    if words[0] in ("load", "show", "rename", "domain", "delete", "export") and len(words) == 1:
        return adapter_names(paths)
    if words[0] == "compare":
        taken = [word for word in words[1:] if not word.startswith("--")]
        return (
            ()
            if words[-1] == "--answers"
            else [
                *(name for name in adapter_names(paths) if len(taken) < 2 and name not in taken),
                "--answers",
            ]
        )
    if words[0] == "prune":
        return () if words[-1] == "--keep" else ("--keep", "--dry-run")
    if words[0] == "merge":
        return _merging(words, paths)
    if words[0] == "domain":
        return ("--clear",) if len(words) == 2 else ()
    if words[0] == "export":
        return (FILES, "--with-lessons")
    return (FILES,) if words[0] == "import" else ()


def _merging(words: Sequence[str], paths: Paths) -> Iterable[str]:
    if words[-1] == "--method":
        return METHODS
    if words[-1] in ("--weights", "--rank", "--density", "--name"):
        return ()
    options = ("--weights", "--method", "--rank", "--density", "--name", "--activate")
    return [*(name for name in adapter_names(paths) if name not in words), *options]


def _train(words: Sequence[str], paths: Paths) -> Iterable[str]:
    if not words:
        return TRAIN_SUBCOMMANDS
    return ("--domain",) if words == ["now"] else ()


def _feedback(words: Sequence[str], paths: Paths) -> Iterable[str]:
    if not words:
        return FEEDBACK_SUBCOMMANDS
    if words[0] == "list":
        return ("buffered", "waiting", "training", "trained", "dropped", "deleted")
    return ("note=", "correction=", "rating=") if words[0] == "edit" and len(words) == 2 else ()


def _config(words: Sequence[str], paths: Paths) -> Iterable[str]:
    if not words:
        return ("show", "get", "set")
    if len(words) == 1:
        return keys()
    return _values(words[1]) if words[0] == "set" and len(words) == 2 else ()


def _values(key: str) -> Iterable[str]:
    """The values a setting can have, where they can be listed."""
    section, _, name = key.partition(".")
    part = Settings.model_fields.get(section)
    if part is None or part.annotation is None:
        return ()
    field = part.annotation.model_fields.get(name)
    if field is None:
        return ()
    if field.annotation is bool:
        return ("true", "false")
    return [value for value in get_args(field.annotation) if isinstance(value, str)]


def _words(*offered: str) -> Complete:
    return lambda words, paths: () if words else offered


def _files(words: Sequence[str], paths: Paths) -> Iterable[str]:
    return () if words else (FILES,)


def _model(words: Sequence[str], paths: Paths) -> Iterable[str]:
    if not words:
        return ("info", "load")
    return (*model_names(paths), FILES) if words == ["load"] else ()


def _names(words: Sequence[str], paths: Paths) -> Iterable[str]:
    return () if words else COMMANDS


_LIST = (
    Command(
        "/help",
        "[command]",
        "this list, or one command in detail",
        "Shows every command, or everything about one: /help adapters.",
        show_help,
        _names,
    ),
    Command(
        "/good",
        "[note]",
        "the last answer was good",
        "Rates the last finished answer as good (weight feedback.good, 1 unless set). The model "
        "learns to answer so again. Rating the same answer again replaces the rating.",
        rate("good"),
    ),
    Command(
        "/medium",
        "[note]",
        "the last answer could be better",
        "Rates the last finished answer as middling (weight feedback.medium, 3 unless set). "
        "Such an answer is never learned. /correct says what would be right; with a note alone "
        "the model revises its answer by it and learns that; without, it moves away from it.",
        rate("medium"),
    ),
    Command(
        "/critical",
        "[note]",
        "the last answer was wrong",
        "Rates the last finished answer as wrong (weight feedback.critical, 10 unless set). "
        "Such an answer is never learned. /correct says what would be right; with a note alone "
        "the model revises its answer by it and learns that; without, it moves away from it.",
        rate("critical"),
    ),
    Command(
        "/correct",
        "[answer]",
        "give the right answer to the last question",
        "Stores the answer that should have been given; the model learns that one. Without an "
        "answer it opens the last one in $VISUAL or $EDITOR, or in an editor of its own where "
        "neither is set. Keeps the rating given before; without one it counts as critical.",
        correct,
    ),
    Command(
        "/feedback",
        "[list|show N|undo|edit N|delete N|revise N|accept N|refuse N]",
        "what you said about answers",
        "list [STATUS]   the newest first; STATUS: buffered, waiting, training, trained, dropped\n"
        "show N          everything about one\n"
        "undo            takes back the last rating, correction, edit, deletion or import\n"
        "edit N          opens the correction in the editor; or edit N note=..., correction=..., "
        "rating=...\n"
        "delete N        takes it out of training and of the list\n"
        "revise N        lets the model rewrite the answer by your note\n"
        "accept N        the revision is right; refuse N: it is not, and is not taught",
        feedback,
        _feedback,
    ),
    Command(
        "/train",
        "[status|now|plan|plot|cancel|queue|resume]",
        "training in the background",
        "status   what is running\n"
        "now      trains what the buffer holds, without waiting for the threshold; "
        "--domain NAME says what the adapter is for\n"
        "plan     what the next job would do: lessons, replay, steps, time and memory\n"
        "plot     draws loss and learning rate; plot RUN METRIC ... draws others\n"
        "cancel   ends the running job; its lessons go back to the buffer\n"
        "queue    all jobs\n"
        "resume   goes on with a job that was interrupted",
        train,
        _train,
    ),
    Command(
        "/adapters",
        "[list|load|unload|show|compare|merge|rebuild|without|rename|domain|delete|prune|rollback|"
        "export|import]",
        "what was learned",
        "list                  every adapter, the active one marked\n"
        "load NAME             the next answer uses it; remembered across restarts\n"
        "unload                the base model answers\n"
        "rollback              goes back to the one before\n"
        "show [NAME]           lessons, figures and parent\n"
        "compare NAME [OTHER]  how two differ, and how they do; OTHER is its parent if not named;\n"
        "                      --answers N shows up to N lessons answered differently (10)\n"
        "merge A B ...         combines them into a new one, exactly unless told otherwise:\n"
        "                      --weights 0.7,0.3 (equal shares if not given), --method cat|svd|\n"
        "                      linear|ties|dare_ties|dare_linear|magnitude_prune (and the last\n"
        "                      four with _svd), --rank N to recompress, --density D, --name NAME,\n"
        "                      --activate\n"
        "rebuild               trains every lesson that stands anew, from the base model\n"
        "without NAME ROUND    takes one round out of an adapter trained with training.mode delta; "
        "--activate\n"
        "rename OLD NEW        gives it another name\n"
        "domain NAME [DOMAIN]  what it is for, such as rust; --clear takes that back\n"
        "delete NAME           removes it; not the active one\n"
        "prune                 removes the worst of too many; --keep N instead of\n"
        "                      adapters.max_kept, --dry-run only says which\n"
        "export NAME FOLDER    writes PEFT's layout; --with-lessons adds the lessons' text\n"
        "import FOLDER         takes an adapter in PEFT's layout",
        adapters,
        _adapters,
    ),
    Command(
        "/eval",
        "[N]",
        "ask your lessons again: how many are answered as taught",
        "Asks the newest N trained lessons (20 unless given) of the adapter in use and of the base "
        "model, beside the conversation, which does not notice. Says how many are answered as "
        "taught, word for word, and shows those that are not. shammah eval scores any data set.",
        check,
    ),
    Command(
        "/model",
        "[info|load NAME]",
        "the base model",
        "info        what it is, where it runs, what it takes\n"
        "load NAME   answers with another one: `embedded`, a registered name (shammah model\n"
        "            register), a folder, or a name on the Hub",
        model,
        _model,
        in_turn=True,
    ),
    Command(
        "/config",
        "[show|get|set]",
        "settings",
        "show [SECTION]   all settings with their values, and where the file is\n"
        "get KEY          one value\n"
        "set KEY VALUE    writes the file, comments kept, and applies what can be applied at once",
        config,
        _config,
    ),
    Command(
        "/retry",
        "",
        "answer the last question once more",
        "Asks again, drawing differently; the new answer takes the place of the last one in the "
        "conversation. What you said about the last one stays stored.",
        retry,
        in_turn=True,
    ),
    Command(
        "/system",
        "[text|none]",
        "show or set the system message",
        "Sets the message that the conversation begins with, for this conversation; `none` removes "
        "it. The setting chat.system holds for every conversation.",
        system,
        _words("none"),
        in_turn=True,
    ),
    Command(
        "/history",
        "[N]",
        "the last questions and answers",
        "Shows the last N exchanges (10 unless given), of earlier conversations too.",
        history,
    ),
    Command(
        "/save",
        "[file]",
        "write this conversation to a file",
        "Writes Markdown, or JSON for a name that ends in .json. Nothing is written over.",
        save,
        _files,
        in_turn=True,
    ),
    Command(
        "/clear",
        "",
        "begin a new conversation",
        "The model forgets what was said; what was stored and learned stays.",
        clear,
        in_turn=True,
    ),
    Command(
        "/stats",
        "",
        "how much is stored, and how fast answers come",
        "Counts of exchanges, feedback, jobs and adapters, sizes on disk, tokens per second.",
        stats,
    ),
    Command(
        "/quit",
        "",
        "leave",
        "Leaves the chat, as Ctrl-D does. A running training job is checkpointed; the next start "
        "offers to go on with it.",
        leave,
        aliases=("/exit",),
    ),
)

COMMANDS: dict[str, Command] = {command.name: command for command in _LIST}
