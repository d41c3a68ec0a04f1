"""How near a question is to what the adapter in use was taught (`adapters.scope = "lessons"`).

Follows the adapter in use, and never stands in the way of an answer: where it cannot tell, the
adapter answers. Knows nothing of conversations.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shammah.adapters.lesson_vectors import LessonVectors
from shammah.adapters.scope import Nearness, Scope, taught_questions
from shammah.assistant.views import Notice
from shammah.errors import ShammahError
from shammah.learning.reach import look_alikes, taught_wordings
from shammah.models.anchors import Anchor, unrelated_anchors
from shammah.settings import AdaptersSettings

if TYPE_CHECKING:
    from shammah.adapters.library import AdapterLibrary
    from shammah.generation.embedder import Embedders
    from shammah.generation.engine import Engine

log = logging.getLogger("shammah")


class ActiveScope:
    """The scope of the adapter that one engine answers with.

    Args:
        embedders: of the engine's model.
        library: where the adapters are described.
        folder: where vectors of lessons are kept.
        anchors: reads what the base is known to be asked.
        on_notice: called with what the user should read, from any thread.
    """

    def __init__(
        self,
        embedders: Embedders,
        engine: Engine,
        library: AdapterLibrary,
        folder: Path,
        anchors: Callable[[], tuple[Anchor, ...]],
        on_notice: Callable[[Notice], None],
    ) -> None:
        self._embedders = embedders
        self._engine = engine
        self._library = library
        self._folder = folder
        self._anchors = anchors
        self._on_notice = on_notice
        self._scope: Scope | None = None
        self._seen: object = None
        self._said: set[str] = set()
        self._looking = asyncio.Lock()

    async def nearness(self, question: str, settings: AdaptersSettings) -> Nearness | None:
        """How near a question is to what the adapter in use was taught; None where that does not
        matter, or cannot be told."""
        await self.look(settings)
        if not self._follows(settings) or self._scope is None:
            return None
        try:
            return await self._scope.nearness(question)
        except ShammahError as error:
            self._say(error)
            return None

    async def look(self, settings: AdaptersSettings) -> None:
        """Read the lessons of the adapter in use, ahead of the question that needs them."""
        if self._follows(settings):
            try:
                await self._look(settings)
            except ShammahError as error:
                self._say(error)

    def _follows(self, settings: AdaptersSettings) -> bool:
        return self._engine.active_name is not None and settings.scope == "lessons"

    async def _look(self, settings: AdaptersSettings) -> None:
        async with self._looking:
            name = self._engine.active_name
            seen = (name, settings.embedding)
            if seen == self._seen or name is None:
                return
            # Set where it fails, too: it is not tried again until something is another way.
            self._seen, self._scope = seen, None
            questions = await asyncio.to_thread(self._questions, name)
            if questions is None:
                return
            embedder = await self._embedders.get(settings.embedding)
            vectors = LessonVectors(embedder, self._folder)
            known = await asyncio.to_thread(self._anchors)
            asked = [anchor.query for anchor in known]
            wordings, alike = taught_wordings(questions), look_alikes(questions)
            # An anchor that asks what a lesson asks is no rival of it.
            rivals = set(unrelated_anchors(known, questions))
            kept = [index for index, anchor in enumerate(known) if anchor in rivals]
            others = [(await vectors.of(asked))[kept], await vectors.of(alike)]
            self._scope = Scope(embedder, await vectors.of(wordings), np.concatenate(others))
            await vectors.keep([asked, alike, wordings])

    def _questions(self, name: str) -> tuple[str, ...] | None:
        known = {
            adapter.name: adapter.metadata
            for adapter in self._library.list()
            if adapter.metadata is not None
        }
        return taught_questions(name, known)

    def _say(self, error: ShammahError) -> None:
        """Once."""
        text = f"The adapter answers every question, not only those near to its lessons: {error}"
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)
            self._on_notice(Notice("warning", text))
