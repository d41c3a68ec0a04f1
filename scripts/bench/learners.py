"""Ways to learn from corrections, each behind the same two questions: learn this, answer that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from lessons import Taught
from program import Correction, Program

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.weights import LoraWeights, load_checked
from shammah.assistant.scope import ActiveScope
from shammah.generation.embedder import Embedders
from shammah.generation.engine import Engine
from shammah.generation.params import GenerationParams
from shammah.messages import Conversation, assistant, system, user
from shammah.models.anchors import read_anchors
from shammah.models.load import load_base_model
from shammah.renderers.registry import renderer_for
from shammah.settings import AdaptersSettings, ModelSettings, Settings

LONGEST = 160
"""Tokens of an answer at most."""
QUESTION = 60
"""Tokens of a question at most; those of the data files are shorter."""
GREEDY = GenerationParams(max_tokens=LONGEST, temperature=0.0)


class Chat:
    """The model that answers: greedily, each question in a conversation of its own that begins with
    `before`."""

    def __init__(self, settings: ModelSettings) -> None:
        self.base = load_base_model(settings)
        self.renderer = renderer_for(self.base.tokenizer, self.base.stop_tokens, self.base.renderer)
        self.before: Conversation = ()
        self._engine = Engine(self.base, self.renderer)
        self._scope: ActiveScope | None = None
        self._adapters = AdaptersSettings()

    def use(self, weights: LoraWeights | None) -> None:
        """Answer every question with these weights from now on; None is the base model."""
        self._scope = None
        self._engine.activate(weights, "taught" if weights else None)

    def follow(self, adapter: Adapter | None, library: AdapterLibrary, settings: Settings) -> None:
        """Answer as the program does that has this adapter in use, within its scope."""
        if adapter is None:
            self.use(None)
            return
        weights = load_checked(adapter.path, adapter.require_metadata(), self.base.shape)
        self._engine.activate(weights, adapter.name)
        self._adapters = settings.adapters
        folder = library.folder.parent / "embeddings" / "scope"
        embedders = Embedders(self.base, self.renderer)
        anchors = partial(read_anchors, self.base.path)
        self._scope = ActiveScope(embedders, self._engine, library, folder, anchors, print)

    def answers(self, questions: Sequence[str]) -> list[str]:
        return [self._answer(question) for question in questions]

    def _answer(self, question: str) -> str:
        state = self._engine.active
        if self._scope is not None:
            near = asyncio.run(self._scope.nearness(question, self._adapters))
            if near is not None and not near.within(self._adapters.scope_threshold):
                state = self._engine.bare
        asked = (*self.before, user(question))
        return self._engine.generate(asked, GREEDY, state).text.strip()

    def close(self) -> None:
        self._engine.close()


@dataclass(frozen=True, slots=True)
class Training:
    """What learning a round took. `kept_back` says why the gate let nothing of it into the chat."""

    steps: int
    seconds: float
    kept_back: tuple[str, ...] = ()


class Learner(Protocol):
    """Makes a chat answer as it was taught, round after round."""

    def learn(self, lessons: Sequence[Taught]) -> Training: ...

    def close(self) -> None: ...


class Jobs:
    """This program: a job a round, each from the adapter before, the lessons before as replay."""

    def __init__(self, chat: Chat, settings: Settings, threads: int) -> None:
        self._chat = chat
        self._settings = settings
        self._program = Program(settings, threads)

    def learn(self, lessons: Sequence[Taught]) -> Training:
        said = self._chat.answers([lesson.ask for lesson in lessons])
        result, seconds = self._program.learn(
            [
                Correction(lesson.ask, answer, lesson.answer)
                for lesson, answer in zip(lessons, said, strict=True)
            ]
        )
        base = self._chat.base
        adapter = self._program.active(base.fingerprint)
        self._chat.follow(adapter, self._program.library, self._settings)
        return Training(result.steps, seconds, result.gate.failures if result.gate else ())

    def close(self) -> None:
        self._program.close()


class InContext:
    """No training: every lesson so far stands in the prompt, as turns that went before, or as a
    system text where that is what fits; the oldest lessons go first where neither does."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._lessons: list[Taught] = []

    def learn(self, lessons: Sequence[Taught]) -> Training:
        began = time.monotonic()
        self._lessons += lessons
        forms = (as_turns(self._lessons), as_text(self._lessons))
        kept = len(self._lessons)
        self._chat.before = next(filter(self._fits, forms), ())
        while not self._chat.before and kept > 1:
            kept -= 1
            turns = as_turns(self._lessons[-kept:])
            self._chat.before = turns if self._fits(turns) else ()
        print(
            f"in the prompt: {kept} of {len(self._lessons)} lessons, as {len(self._chat.before)} "
            f"messages of {self._tokens(self._chat.before)} tokens",
            flush=True,
        )
        return Training(0, time.monotonic() - began)

    def close(self) -> None:
        self._chat.before = ()

    def _fits(self, before: Conversation) -> bool:
        return self._tokens(before) + QUESTION + LONGEST <= self._chat.base.context_length

    def _tokens(self, before: Conversation) -> int:
        return len(self._chat.renderer.generation_prompt((*before, user("?"))))


def as_turns(lessons: Sequence[Taught]) -> Conversation:
    """Each lesson as a question that was asked and answered."""
    return tuple(
        message for item in lessons for message in (user(item.ask), assistant(item.answer))
    )


def as_text(lessons: Sequence[Taught]) -> Conversation:
    """The lessons as instructions."""
    lines = [f"{item.ask} {item.answer}" for item in lessons]
    return (system("Answer these questions so:\n" + "\n".join(lines)),)
