"""An answer's tokens as a message, also while they come: what is said, thought and called.

Knows tokens and marks, not what the marks of a family mean: each family has a parser of its own,
which is told of one mark or one piece of text after the other.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from shammah.messages import Message, Part, TextPart, ThinkingPart, ToolCall
from shammah.renderers.detokenize import Detokenizer
from shammah.renderers.tokenization import TextTokenizer

STRAY = "this special token has no place here"
"""The reason of a problem whose text nobody should be shown as an answer."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a model wrote that its format does not allow, word for word, and why not."""

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """What a model wrote.

    Attributes:
        message: the assistant's; thinking is a part of it, tool calls beside it.
        problems: what could not be read. Its text is in no other place.
        complete: whether the answer came to its end.
    """

    message: Message
    problems: tuple[Problem, ...] = ()
    complete: bool = True


Delta = TextPart | ThinkingPart | ToolCall | Problem
"""What a parser gives while it reads: more text, more thinking, a whole call, or a problem."""


class AnswerParser(ABC):
    """Reads an answer token by token.

    Args:
        text: the tokenizer.
        marks: texts that mean something in the format. One that is a token of its own is known by
            its number, so that the same letters as plain text are text; others are looked for in
            the text.
        stop_tokens: tokens that end the answer.
    """

    def __init__(
        self, text: TextTokenizer, marks: Iterable[str], stop_tokens: Collection[int]
    ) -> None:
        self._marks: dict[int, str] = {}
        spelled = []
        for mark in marks:
            if (token := text.token_id(mark)) is None:
                spelled.append(mark)
            else:
                self._marks[token] = mark
        self._splitter = _Splitter(spelled)
        self._text = text
        self._detokenizer = Detokenizer(text.decode)
        self._stop_tokens = frozenset(stop_tokens)
        self._parts: list[TextPart | ThinkingPart] = []
        self._calls: list[ToolCall] = []
        self._problems: list[Problem] = []
        self._deltas: list[Delta] = []
        self._blank = ""
        self._ended = False

    @abstractmethod
    def mark(self, mark: str) -> None:
        """A mark was read."""

    @abstractmethod
    def text(self, text: str) -> None:
        """Some text was read; not always up to the next mark."""

    @abstractmethod
    def end(self) -> None:
        """No more is read: what is open is closed, or reported where it must not be open."""

    @property
    def ended(self) -> bool:
        """Whether the answer has come to its end: nothing more is read."""
        return self._ended

    def feed(self, token: int) -> list[Delta]:
        """What one more token adds. Tokens behind the end of the answer add nothing."""
        if not self._ended:
            if token in self._stop_tokens and token not in self._marks:
                self._flush()
                self._ended = True
            elif token in self._marks:
                self._flush()
                self.mark(self._marks[token])
            elif token in self._text.special_ids:
                self._flush()
                self.problem(self._text.decode_whole([token]), STRAY)
            else:
                self._read(self._detokenizer.push(token))
        return self._given()

    def finish(self) -> tuple[list[Delta], ParsedAnswer]:
        """What was held back, and the whole answer."""
        self._flush()
        self.end()
        content: str | tuple[Part, ...] = tuple(self._parts)
        if not any(isinstance(part, ThinkingPart) for part in self._parts):
            content = "".join(part.text for part in self._parts if isinstance(part, TextPart))
        message = Message("assistant", content, tuple(self._calls))
        return self._given(), ParsedAnswer(message, tuple(self._problems), self._ended)

    def parse(self, tokens: Sequence[int]) -> ParsedAnswer:
        """The answer in all these tokens."""
        for token in tokens:
            self.feed(token)
        return self.finish()[1]

    # --- for the families

    def stop(self) -> None:
        """The answer is complete: nothing behind this is read."""
        self._ended = True

    def say(self, text: str) -> None:
        """Adds to what is said; newlines before the first word of it are left away, and blanks at
        the end wait for more."""
        self._add(text, TextPart)

    def think(self, text: str) -> None:
        """Adds to what is thought, in the same way."""
        self._add(text, ThinkingPart)

    def close(self) -> None:
        """Ends what is said or thought: the newlines that wait behind it belong to the format."""
        self._blank = ""

    def settle(self) -> None:
        """Keeps the newlines that wait: they belong to what is said."""
        blank, self._blank = self._blank, ""
        if blank and self._parts:
            last = self._parts[-1]
            self._append(type(last), blank)

    def call(self, name: str, arguments: str, identifier: str | None = None) -> None:
        call = ToolCall(name, arguments, identifier)
        self._calls.append(call)
        self._deltas.append(call)

    def problem(self, text: str, reason: str) -> None:
        problem = Problem(text, reason)
        self._problems.append(problem)
        self._deltas.append(problem)

    # --- within

    def _add(self, text: str, kind: type[TextPart] | type[ThinkingPart]) -> None:
        if not (self._parts and isinstance(self._parts[-1], kind)):
            self._blank = ""
            text = text.lstrip("\n")
        text = self._blank + text
        kept = text.rstrip("\n")
        self._blank = text[len(kept) :]
        if kept:
            self._append(kind, kept)

    def _append(self, kind: type[TextPart] | type[ThinkingPart], text: str) -> None:
        delta = kind(text)
        self._deltas.append(delta)
        if self._parts and isinstance(self._parts[-1], kind):
            last = self._parts.pop()
            before = last.text if isinstance(last, TextPart) else last.thinking
            delta = kind(before + text)
        self._parts.append(delta)

    def _read(self, text: str) -> None:
        self._tell(self._splitter.push(text))

    def _flush(self) -> None:
        if not self._ended:
            self._read(self._detokenizer.finish())
            self._tell(self._splitter.finish())

    def _tell(self, found: Iterable[tuple[str, bool]]) -> None:
        for text, is_mark in found:
            if self._ended:
                return
            if is_mark:
                self.mark(text)
            else:
                self.text(text)

    def _given(self) -> list[Delta]:
        given, self._deltas = self._deltas, []
        return given


def read_call(parser: AnswerParser, raw: str, arguments: str = "arguments") -> None:
    """A call written as `{"name": ..., "arguments": {...}}`, or the problem with it.

    Args:
        arguments: what the format calls them.
    """
    try:
        value = json.loads(raw)
    except ValueError as error:
        parser.problem(raw, f"the tool call is not JSON: {error}")
        return
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        parser.problem(raw, "the tool call has no name")
    elif not isinstance(value.get(arguments, {}), dict):
        parser.problem(raw, f"the {arguments} of the tool call are no object")
    else:
        given = json.dumps(value.get(arguments, {}), ensure_ascii=False)
        if any("\ud800" <= character <= "\udfff" for character in value["name"] + given):
            # JSON can escape what is no character, and no tokenizer takes it.
            parser.problem(raw, "the tool call has half a character in it")
        else:
            parser.call(value["name"], given)


def read_named_call(
    parser: AnswerParser, raw: str, name: str, arguments: str, identifier: str | None = None
) -> None:
    """A call whose name stands apart from its arguments, or the problem with it.

    Args:
        raw: the whole call, as the model wrote it.
    """
    try:
        value = json.loads(arguments)
    except ValueError as error:
        parser.problem(raw, f"the arguments of the tool call are not JSON: {error}")
        return
    if isinstance(value, dict):
        parser.call(name, arguments, identifier)
    else:
        parser.problem(raw, "the arguments of the tool call are no object")


class _Splitter:
    """Finds marks in text that comes in pieces; holds back what may be the beginning of one."""

    def __init__(self, marks: Sequence[str]) -> None:
        self._marks = tuple(marks)
        self._held = ""

    def push(self, text: str) -> list[tuple[str, bool]]:
        """Text and marks (True) in their order."""
        text = self._held + text
        self._held = ""
        found: list[tuple[str, bool]] = []
        while self._marks:
            at, mark = min(
                ((text.find(mark), mark) for mark in self._marks if mark in text),
                default=(-1, ""),
            )
            if at < 0:
                break
            found += [(text[:at], False), (mark, True)]
            text = text[at + len(mark) :]
        keep = next(
            (
                size
                for size in range(min(max(map(len, self._marks), default=1) - 1, len(text)), 0, -1)
                if any(mark.startswith(text[-size:]) for mark in self._marks)
            ),
            0,
        )
        self._held = text[len(text) - keep :]
        found.append((text[: len(text) - keep], False))
        return [(piece, is_mark) for piece, is_mark in found if piece]

    def finish(self) -> list[tuple[str, bool]]:
        held, self._held = self._held, ""
        return [(held, False)] if held else []
