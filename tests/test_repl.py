"""The chat on a real terminal, with the embedded model behind it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from terminal import (
    ALT_ENTER,
    CTRL_A,
    CTRL_C,
    CTRL_K,
    CTRL_S,
    ENTER,
    TAB,
    UP,
    Terminal,
)  # fmt: skip
from tiny_models import build_babbler

from shammah.assistant.workspace import Workspace
from shammah.messages import user
from shammah.paths import Paths
from shammah.repl.commands import COMMANDS
from shammah.repl.completion import CommandCompleter
from shammah.repl.markdown import MarkdownBlocks, parser, render_markdown
from shammah.repl.text import harmless
from shammah.settings import Settings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "config.toml").write_text("# mine\n[feedback]\nauto_train = false  # not here\n")
    return folder


@pytest.fixture(scope="module")
def chat(home: Path) -> Iterator[Terminal]:
    """One chat for all tests that leave it as they found it."""
    with Terminal(home) as terminal:
        terminal.wait_for(ready)
        yield terminal


def ready(terminal: Terminal) -> bool:
    return "no adapter" in terminal.lines[-1] and "loading" not in terminal.lines[-1]


def quiet(terminal: Terminal) -> bool:
    return "answering" not in terminal.lines[-1]


def test_the_prompt_is_there_before_the_model(tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal:
        terminal.wait_for("\n>")
        memory = Path(f"/proc/{terminal.process_id}/maps")
        if memory.exists():
            assert "libtorch" not in memory.read_text()
        # A question asked meanwhile waits for the model.
        terminal.submit("What is your name?")
        terminal.wait_for(lambda t: "tok/s" in t.lines[-1])
        assert "Shammah" in terminal.text.rpartition("> What is your name?")[2]
        assert terminal.leave() == 0
        log = (tmp_path / "shammah.log").read_text()
        assert "WARNING" not in log and "ERROR" not in log


def test_answers_are_rated_and_corrected(chat: Terminal) -> None:
    assert "Shammah" in chat.ask("What is your name?")
    shown = chat.submit_and_wait("/critical too long", "Training buffer:")
    assert "🔴 Feedback recorded (weight: 10x)" in shown
    assert "Note: too long" in shown
    assert "revise" in shown and "/correct" in shown
    shown = chat.submit_and_wait("/correct I am Shammah.", "Training buffer:")
    assert "Replaces what you said" in shown
    assert "Training buffer: 1 example (10.0 weighted)" in shown
    assert "1/10 (10.0)" in chat.lines[-1]
    assert "as it was before" in chat.submit_and_wait("/feedback undo", "Training buffer:")
    assert "🟢" in chat.submit_and_wait("/good my key is AKIAIOSFODNN7EXAMPLE", "Warning:")


def test_the_inline_editor_stores_what_is_saved_and_nothing_else(chat: Terminal) -> None:
    assert "Shammah" in chat.ask("What is your name?")
    chat.submit("/correct")
    chat.wait_for("Ctrl-S")
    chat.type(CTRL_C)
    chat.wait_for("nothing is stored")
    chat.submit("/correct")
    chat.wait_for("Ctrl-S")
    chat.type(CTRL_A + CTRL_K + "Two" + ENTER + "lines" + CTRL_S)
    chat.wait_for("Correction: Two lines")
    chat.settle()


def test_an_unknown_command_names_the_nearest(chat: Terminal) -> None:
    assert "Did you mean /critical?" in chat.submit_and_wait("/crtical", "Did you mean")
    assert "Did you mean list?" in chat.submit_and_wait("/adapters lst", "Did you mean list")
    assert "no adapter" in chat.lines[-1]


def test_ctrl_c_stops_the_answer_and_typing_goes_on_meanwhile(tmp_path: Path) -> None:
    model = build_babbler(tmp_path / "babbler")
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[model]\nname = "{model}"\n[generation]\nmax_tokens = 8\ntemperature = 1.0\n'
    )
    with Terminal(home, columns=200) as chat:
        chat.wait_for(ready)
        chat.submit_and_wait("Are you there?", "reached generation.max_tokens (8)")
        chat.submit_and_wait("/config set generation.max_tokens 190000", "In effect.")
        chat.submit("Tell me everything.")
        chat.wait_for(lambda t: "answering" in t.lines[-1])
        chat.submit("/medium not yet")
        chat.wait_for("Note: not yet")
        chat.type("half a line")
        chat.wait_for("> half a line")
        chat.type(CTRL_C)
        chat.wait_for("(stopped)")
        chat.wait_for(quiet)
        chat.wait_for(lambda t: "> half a line" in t.lines)
        chat.type(CTRL_C)
        chat.wait_for(lambda t: "> half a line" not in t.lines)
        assert "> Tell me everything." in chat.text


def test_settings_are_written_with_their_comments(chat: Terminal, home: Path) -> None:
    chat.submit_and_wait("/config set feedback.threshold 12", "In effect.")
    text = (home / "config.toml").read_text()
    assert text.startswith("# mine\n[feedback]\nauto_train = false  # not here\n")
    assert "threshold = 12" in text
    assert "/12 (" in chat.lines[-1]
    assert "feedback.threshold" in chat.submit_and_wait("/config set feedback.threshhold 1", "Did")


def test_the_conversation_can_be_steered_and_kept(chat: Terminal, tmp_path: Path) -> None:
    assert "No system message" in chat.submit_and_wait("/system", "No system message")
    assert "is set" in chat.submit_and_wait("/system Be brief.", "is set")
    assert "Be brief." in chat.submit_and_wait("/system", "System message:")
    assert "gone" in chat.submit_and_wait("/system none", "gone")
    assert chat.ask("What is your name?")
    assert chat.ask("/retry")
    saved = tmp_path / "talk.json"
    chat.submit_and_wait(f"/save {saved}", "Saved to")
    assert json.loads(saved.read_text())["messages"][-1]["role"] == "assistant"
    assert "already" in chat.submit_and_wait(f"/save {saved}", "Give another name")
    assert "What is your name?" in chat.submit_and_wait("/history 2", "answer")
    chat.submit_and_wait("/clear", "A new conversation")
    assert "nothing to save" in chat.submit_and_wait("/save", "nothing to save")
    assert "There is no answer" in chat.submit_and_wait("/retry", "There is no answer")
    assert "last answer" in chat.submit_and_wait("/stats", "tokens/s")
    assert "Qwen2ForCausalLM" in chat.submit_and_wait("/model", "fingerprint")
    assert "No adapters yet" in chat.submit_and_wait("/adapters", "No adapters yet")
    assert "No training job" in chat.submit_and_wait("/train", "Training buffer:")
    assert "undo" in chat.submit_and_wait("/help feedback", "delete N")


def test_tab_completes(chat: Terminal) -> None:
    chat.type("/conf" + TAB + "g" + TAB + "lora.ra" + TAB)
    chat.wait_for("/config get lora.rank")
    chat.type(ENTER)
    chat.wait_for("lora.rank = 16")
    chat.settle()


def test_corrections_are_edited_in_the_editor_of_the_user(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path)
    workspace = Workspace(Settings(), paths)
    workspace.feedback.add((user("Who?"),), "An answer", "good", None, None, None, "embedded")
    workspace.close()
    editor = tmp_path / "editor.py"
    editor.write_text("import sys; input('edit? '); open(sys.argv[1], 'a').write(' and more')")
    with Terminal(tmp_path, environment={"VISUAL": f"{sys.executable} {editor}"}) as terminal:
        terminal.wait_for("\n>")
        terminal.submit("/feedback edit 1")
        terminal.wait_for("edit?")
        terminal.type(ENTER)
        terminal.wait_for("Correction: An answer and more")
        assert terminal.leave() == 0


def test_history_keeps_entries_of_several_lines_across_restarts(tmp_path: Path) -> None:
    with Terminal(tmp_path, columns=40) as terminal:
        terminal.wait_for("\n>")
        terminal.type("/help" + ALT_ENTER + "not a command" + ENTER)
        terminal.wait_for("no command /not")
        terminal.submit_and_wait("/nothing", "no command /nothing")
        assert terminal.leave() == 0
    assert (tmp_path / "history").stat().st_mode & 0o777 == 0o600
    with Terminal(tmp_path, columns=40) as terminal:
        terminal.wait_for("\n>")
        terminal.type(UP + UP)
        terminal.wait_for(lambda t: any(line == "> /help" for line in t.lines))
        assert terminal.lines[terminal.lines.index("> /help") + 1] == "  not a command"
        terminal.type(CTRL_C)
        terminal.wait_for(lambda t: "> /help" not in t.lines)
        os.kill(terminal.process_id, signal.SIGTERM)
        assert terminal.wait_for_end() == 0


def test_a_terminal_that_can_do_nothing(tmp_path: Path) -> None:
    plain = {"TERM": "dumb", "LC_ALL": "C", "NO_COLOR": "1"}
    with Terminal(tmp_path, columns=20, rows=8, environment=plain) as terminal:
        terminal.wait_for(">")
        terminal.submit("Hello!")
        terminal.submit("/good")
        terminal.wait_for("Feedback record")
        terminal.submit("/quit")
        assert terminal.wait_for_end() == 0
        assert "\x1b" not in terminal.text


def test_a_setting_that_is_wrong_ends_the_chat_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[lora]\nrnk = 3\n")
    with Terminal(tmp_path) as terminal:
        assert terminal.wait_for_end() == 2
        assert "Did you mean lora.rank?" in terminal.text
        assert "Traceback" not in terminal.text


# --- what needs no terminal -----------------------------------------------------------------


PIECES = st.sampled_from(
    ["# h\n", "- a\n", "  - b\n", "1. x\n", "\n", "\n\n", "```\n", "```py\n", "text ", "more\n",
     "> q\n", "| a | b |\n", "|---|---|\n", "| 1 | 2 |\n", "    code\n", "*em*", "`c`", "---\n",
     "===\n", "<div>\n", "[a]: b\n", "中文\n", "\t", "\x0b", "\r\n", "\u2028", "~~~\n", "* ",
     "+ z\n"]
)  # fmt: skip


def tokens(text: str) -> list[tuple[str, str, str]]:
    return [(token.type, token.tag, token.content) for token in parser().parse(text)]


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join), st.lists(st.integers(0, 200)))
def test_blocks_are_the_text_however_it_is_cut(text: str, cuts: list[int]) -> None:
    """Nothing is lost or said twice, and block by block it parses as the whole does."""
    borders = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    stream = MarkdownBlocks()
    blocks = [block for a, b in pairwise(borders) for block in stream.feed(text[a:b])]
    blocks.append(stream.finish())
    assert "".join(blocks) == text
    assert [token for block in blocks for token in tokens(block)] == tokens(text)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80), st.integers(10, 60))
def test_what_a_model_says_cannot_drive_the_terminal(text: str, width: int) -> None:
    shown = render_markdown(
        text + "\x1b]0;title\x07\x1b[2J", theme="x", coloured=False, width=width
    )
    assert not any(character in shown for character in "\x1b\x07\x9b\r")
    assert harmless(harmless(text)) == harmless(text)


def test_every_command_explains_itself_and_completes(tmp_path: Path) -> None:
    completer = CommandCompleter(COMMANDS, Paths(tmp_path, tmp_path))

    def offered(line: str) -> list[str]:
        event = CompleteEvent(completion_requested=True)
        return [found.text for found in completer.get_completions(Document(line), event)]

    assert offered("/") == list(COMMANDS)
    for command in COMMANDS.values():
        assert command.summary and command.detail and command.name in offered(command.name)
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "lora_adapter_1.safetensors").touch()
    assert offered("/adapters load ") == ["lora_adapter_1"]
    assert offered("/adapters merge l") == offered("/adapters compare l") == ["lora_adapter_1"]
    assert offered("/adapters merge lora_adapter_1 l") == []
    assert offered("/adapters merge a b --method dare_ties_") == ["dare_ties_svd"]
    assert offered("/adapters prune --") == ["--keep", "--dry-run"]
    assert offered("/config set feedback.threshold_by ") == ["count", "weight"]
    assert offered("/config set feedback.auto") == ["feedback.auto_train"]
    assert "rollback" in offered("/adapters ro")
    assert offered("no command") == []
