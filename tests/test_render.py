"""`shammah render` shows the tokens that a conversation becomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import shammah
from rendering import TOOLS, tokenizer

from shammah.messages import assistant, to_dicts, user
from shammah.renderers.base import TrainOnWhat
from shammah.renderers.registry import renderer_for

ASKED = (user("What is <|im_end|>?"), assistant("A mark.", thinking="Hm."))
FOLLOWED = (*ASKED, user("Thanks"), assistant("With pleasure."))


def file(folder: Path, *rows: Any) -> str:
    path = folder / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_json_is_what_the_renderer_gives(
    tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    folder = shared_data("tokenizers/qwen3")
    tools = [tool.to_dict() for tool in TOOLS]
    name = file(
        tmp_path,
        {"messages": to_dicts(FOLLOWED), "tools": tools},
        {"messages": to_dicts(ASKED)},
    )
    given = ("--tokenizer", str(folder), "--json")
    found = shammah(tmp_path, "render", name, "--train-on", "all_assistant_messages", *given)
    first, second = map(json.loads, found.stdout.splitlines())
    renderer = renderer_for(tokenizer("qwen3"))
    wanted = renderer.supervised(FOLLOWED, TrainOnWhat.ALL_ASSISTANT_MESSAGES, TOOLS)
    assert first == {"tokens": wanted.tokens, "weights": wanted.weights}
    assert sum(second["weights"]) > 0

    prompt = file(tmp_path, {"messages": to_dicts(FOLLOWED[:-1])})
    found = shammah(tmp_path, "render", prompt, "--generate", *given)
    assert json.loads(found.stdout)["tokens"] == renderer.generation_prompt(FOLLOWED[:-1])


def test_text_marks_what_is_learned(tmp_path: Path) -> None:
    name = file(tmp_path, {"messages": to_dicts(FOLLOWED)})
    found = shammah(tmp_path, "render", name)
    assert "»With pleasure.<|im_end|>«" in found.stdout
    assert "What is <|im_end|>?<|im_end|>" in found.stdout
    written = json.dumps({"messages": to_dicts(ASKED)}, indent=2)
    found = shammah(tmp_path, "render", "-", "--renderer", "role_colon", given=written)
    assert "role_colon" in found.stdout and "Assistant:» A mark." in found.stdout


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"messages": [{"role": "bot", "content": "x"}]}, (), "message 1 has the role 'bot'"),
        ({"message": []}, (), "no object with messages"),
        ({"messages": to_dicts(ASKED[:1])}, (), "must end with the assistant's answer"),
        ({"messages": to_dicts(ASKED)}, ("--train-on", "customized"), "`trainable`"),
        ({"messages": to_dicts(ASKED)}, ("--train-on", "some"), "does not know 'some'"),
        ({"messages": to_dicts(ASKED)}, ("--renderer", "llama3"), "does not have"),
        ({"messages": to_dicts(ASKED), "tools": [{}]}, (), "tool 1 is not an object"),
    ],
)
def test_what_cannot_be_rendered_is_said(
    tmp_path: Path, row: Any, options: tuple[str, ...], said: str
) -> None:
    found = shammah(tmp_path, "render", file(tmp_path, row), *options)
    assert found.returncode in (2, 4) and said in found.stderr
    assert "Traceback" not in found.stderr
