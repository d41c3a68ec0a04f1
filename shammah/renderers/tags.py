"""Answers with thoughts between `<think>` tags, and with calls as JSON between `<tool_call>` tags.

Several families write so. Knows the tags, and not what else a family writes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from shammah.renderers.parsing import AnswerParser, read_call
from shammah.renderers.tokenization import TextTokenizer

THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"
TAGS = (THINK, THOUGHT, CALL, CALLED)


class TagParser(AnswerParser):
    """Thought, text and calls, told apart by tags.

    Args:
        text: the tokenizer.
        stop_tokens: tokens that end the answer.
        tags: those that mean something; others are text.
        thinking: whether the prompt ends within a thought.
    """

    def __init__(
        self,
        text: TextTokenizer,
        stop_tokens: Collection[int],
        tags: Iterable[str] = TAGS,
        *,
        thinking: bool = False,
    ) -> None:
        super().__init__(text, tags, stop_tokens)
        self._inside: str | None = THINK if thinking else None
        self._raw = ""

    def mark(self, mark: str) -> None:
        opened, self._inside = self._inside, None
        if opened == CALL:
            if mark == CALLED:
                read_call(self, self._raw.strip())
            else:
                self.problem(f"{CALL}{self._raw}{mark}", "a tool call does not end")
            self._raw = ""
        elif opened == THINK and mark == THOUGHT:
            self.close()
        elif mark in (THINK, CALL) and opened is None:
            self.close()
            self._inside = mark
        else:
            self._inside = opened
            self.problem(mark, "it ends what had not begun" if mark != opened else "it is open")

    def text(self, text: str) -> None:
        if self._inside == CALL:
            self._raw += text
        elif self._inside == THINK:
            self.think(text)
        elif self._parts or text.strip("\n") or not self._calls:
            self.say(text)

    def end(self) -> None:
        if self._inside == CALL:
            self.problem(f"{CALL}{self._raw}", "the answer ended within a tool call")
        elif self._inside == THINK:
            self.close()
            self.problem("", "the answer ended within a thought")
        else:
            self.settle()
