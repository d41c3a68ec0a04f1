"""What a teacher behind a server answers: asked once, kept in the run's folder as it comes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from shammah.errors import InputError
from shammah.recipes.company import led
from shammah.recipes.place import RunPlace
from shammah.recipes.workflows.context import Context
from shammah.recipes.workflows.stage import stage

if TYPE_CHECKING:
    from shammah.datasets import ChatExample
    from shammah.recipes.material import Material

ANSWERS = "teacher.jsonl"
AT_ONCE = 4
"""Questions that a server is asked together."""


class Asking(Protocol):
    """How the teacher is asked, as a recipe has it."""

    max_tokens: int
    temperature: float
    seed: int


@stage(needs=("data",), gives=("asked",))
async def ask(context: Context) -> None:
    """Ask the server each question, and keep its answers."""
    await led(context, lambda: _ask(context))
    place: RunPlace = context.backends["place"]
    material: Material = context.backends["material"]
    known = answers(place)
    asked = {_key(each) for each in (*material.examples, *material.held_out)}
    left_out = sum(not known[key] for key in asked)
    context.state["asked"] = len(asked)
    context.state["data"] = {**context.state["data"], "unanswered": left_out}


async def _ask(context: Context) -> None:
    from shammah.ports.llm_client import ChatParams

    asking: Asking = context.config
    place: RunPlace = context.backends["place"]
    material: Material = context.backends["material"]
    params = ChatParams(
        max_tokens=asking.max_tokens, temperature=asking.temperature, seed=asking.seed
    )
    known = answers(place)
    asked = {_key(each): each.prompt for each in (*material.examples, *material.held_out)}
    missing = [key for key in asked if key not in known]
    for start in range(0, len(missing), AT_ONCE):
        if context.stopping():
            context.interrupt()
        members = missing[start : start + AT_ONCE]
        teacher = context.backends["teacher"]
        found = await asyncio.gather(
            *(teacher.chat(asked[key], params) for key in members), return_exceptions=True
        )
        new = {
            # One that was cut would teach to break off.
            key: answer.message.text.strip() if answer.stop_reason == "stop" else ""
            for key, answer in zip(members, found, strict=True)
            if not isinstance(answer, BaseException)
        }
        # What was asked, and perhaps paid for, is not asked again, also where another one failed.
        _keep(place, new)
        known |= new
        for each in found:
            if isinstance(each, BaseException):
                raise each
    if not any(known[key] for key in asked):
        raise InputError(
            f"The teacher answered none of {len(asked)} questions in {asking.max_tokens} tokens.",
            hint="Raise max_tokens, and start a new run: its answers are kept with this one.",
        )


def answers(place: RunPlace) -> dict[str, str]:
    """What the server has answered, by what it was asked; without a line that a kill has torn."""
    try:
        text = (place.folder / ANSWERS).read_text("utf-8")
    except FileNotFoundError:
        return {}
    return dict(json.loads(line) for line in text.split("\n")[:-1])


def _keep(place: RunPlace, answers: Mapping[str, str]) -> None:
    file = place.folder / ANSWERS
    lines = "".join(json.dumps(pair) + "\n" for pair in answers.items())
    with open(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as stream:  # noqa: PTH123
        # Behind the last whole line.
        stream.seek(stream.read().rfind(b"\n") + 1)
        stream.truncate()
        stream.write(lines.encode())
        stream.flush()
        os.fsync(stream.fileno())


def answered(examples: Sequence[ChatExample], known: Mapping[str, str]) -> list[ChatExample]:
    """The examples with the teacher's answers; those without one are left out."""
    from shammah.messages import assistant

    return [
        replace(each, messages=(*each.prompt, assistant(known[_key(each)])))
        for each in examples
        if known[_key(each)]
    ]


def _key(example: ChatExample) -> str:
    from shammah.messages import to_dicts

    return json.dumps(to_dicts(example.prompt), ensure_ascii=False)
