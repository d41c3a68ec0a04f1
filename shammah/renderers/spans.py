"""Where each message's author writes, in the text that an opaque chat template made of them.

Marks are put around what every message says; where the text with marks is the text without them,
once they are taken out, they show the places. A template may cut, strip or test what it is given,
so that the marks change the text: then they are put elsewhere, and for one message after the other.
What cannot be shown in this way is not located, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from shammah.errors import ModelError
from shammah.messages import Conversation, Message, Part, TextPart, ThinkingPart

Writer = Callable[[Conversation, bool], str]
"""Text of a conversation, as a prompt or not."""


@dataclass(frozen=True, slots=True)
class Span:
    """First and last character, and one further, of what a message says."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Style:
    """How marks are put: behind which characters at the beginning of a text and before which at its
    end (None for all blanks), and around empty text or not."""

    behind: str | None
    before: str | None
    empty: bool


_STRIPPED = ("", "\n", None)
_STYLES = tuple(
    _Style(behind, before, empty)
    for empty, before, behind in product((True, False), _STRIPPED, _STRIPPED)
)
_OUTSIDE, _OUTSIDE_NO_EMPTY = _Style("", "", True), _Style("", "", False)
_ENDS = (_OUTSIDE, _OUTSIDE_NO_EMPTY, _Style(None, None, True), _Style(None, None, False))


class Locator:
    """Finds messages in what a template writes.

    Args:
        write: the template.
        mark: gives a character that occurs nowhere else.
        specials: where special tokens are in what the template wrote.
        end_of_turn: the special token that the template puts behind an answer, if it puts one.
    """

    def __init__(
        self,
        write: Writer,
        mark: Callable[[], str],
        specials: Callable[[str], list[tuple[int, int]]],
        end_of_turn: str = "",
    ) -> None:
        self._write = write
        self._mark = mark
        self._specials = specials
        self._end_of_turn = end_of_turn
        self._pairs: dict[int, list[tuple[str, str]]] = {}

    def said(self, conversation: Conversation, text: str, prompt: bool) -> list[Span | None]:
        """For each message what it says in `text`; None where it is not in there, or where the
        template does something with it that hides its place."""
        everything = range(len(conversation))
        spans: list[Span | None] = [None] * len(conversation)
        for style in (_OUTSIDE, _OUTSIDE_NO_EMPTY):
            if (found := self._try(conversation, text, prompt, style, everything)) is not None:
                spans = found
                break
        for index in everything:
            if spans[index] is None:
                tries = (self._try(conversation, text, prompt, style, [index]) for style in _STYLES)
                spans[index] = next((found[index] for found in tries if found), None)
        return spans

    def bodies(
        self, conversation: Conversation, text: str, wanted: Sequence[bool], *, prompt: bool
    ) -> list[Span | None]:
        """What the authors of the wanted messages write, with the token that ends it."""
        said = self.said(conversation, text, prompt)
        bodies: list[Span | None] = [None] * len(conversation)
        for index, span in enumerate(said):
            if span is None or not wanted[index]:
                continue
            others = [other for other in said if other is not None and other != span]
            before = max((other.end for other in others if other.end <= span.start), default=0)
            behind = min((o.start for o in others if o.start >= span.end), default=len(text))
            start = span.start
            if conversation[index].role == "assistant":
                start = self._answer_start(conversation[:index], text, before, span.start)
            end = self._end(conversation, index, text[span.end : behind])
            bodies[index] = None if end is None else Span(start, span.end + end)
        return bodies

    def left_out(self, conversation: Conversation) -> int | None:
        """The first message with a call or a result of a tool that the template does not write."""
        if not any(message.tool_calls or message.role == "tool" for message in conversation):
            return None
        marked = self._marked(conversation, _OUTSIDE_NO_EMPTY, range(len(conversation)))
        text = self._write(marked, conversation[-1].role != "assistant")
        for index, message in enumerate(conversation):
            pairs = self._pairs[index]
            if message.tool_calls:
                pairs = pairs[-len(message.tool_calls) :]
            elif message.role != "tool" or not message.text.strip():
                continue
            if not all(opening in text for opening, _ in pairs):
                return index
        return None

    def _try(
        self,
        conversation: Conversation,
        text: str,
        prompt: bool,
        style: _Style,
        indices: Sequence[int],
    ) -> list[Span | None] | None:
        marked_ones = self._marked(conversation, style, indices)
        try:
            marked = self._write(marked_ones, prompt)
        except ModelError:
            return None
        marks = {mark for pairs in self._pairs.values() for pair in pairs for mark in pair}
        places: dict[str, list[int]] = {}
        plain: list[str] = []
        for character in marked:
            if character in marks:
                places.setdefault(character, []).append(len(plain))
            else:
                plain.append(character)
        if "".join(plain) != text:
            return None
        spans: list[Span | None] = []
        for index in range(len(conversation)):
            own = [mark for pair in self._pairs.get(index, ()) for mark in pair if mark in places]
            again = [mark for mark in own if len(places[mark]) > 1]
            if index not in indices or not own or self._written_again(marked_ones, index, again):
                spans.append(None)
            else:
                first = [places[mark][0] for mark in own]
                spans.append(Span(min(first), max(first)))
        return spans

    def _written_again(self, marked: Conversation, index: int, marks: Sequence[str]) -> bool:
        """Whether a message itself is written more than once, and not again by a later one, as the
        name of a tool is with its result: then it is not known which place is its own."""
        if not marks:
            return False
        try:
            text = self._write(marked[: index + 1], False)
        except ModelError:
            return True
        return any(text.count(mark) != 1 for mark in marks)

    def _answer_start(self, asked: Conversation, text: str, before: int, start: int) -> int:
        """Where the model begins to write: behind the header that a prompt ends with."""
        try:
            prompt = self._write(asked, True)
            if text.startswith(prompt) and before <= len(prompt) <= start:
                return len(prompt)
            plain = self._write(asked, False)
        except ModelError:
            return start
        header = prompt[len(plain) :] if prompt.startswith(plain) else ""
        at = text.rfind(header, before, start) if header else -1
        return start if at < 0 else at + len(header)

    def _end(self, conversation: Conversation, index: int, behind: str) -> int | None:
        """How much of the text behind what a message says belongs to it, up to its end token.

        What the template writes behind it when it is the last message tells. None where a call's
        end is written in another way later.
        """
        for style in _ENDS:
            tail = self._tail(conversation[: index + 1], style)
            if tail is None:
                continue
            if not (specials := self._specials(tail)):
                if behind.startswith(tail):
                    return len(tail.rstrip())
                continue
            start, _ = specials[-1]
            # The last answer may end with another token than earlier ones do.
            ends = [stop for begin, stop in self._specials(behind) if begin == start]
            if ends and behind[:start] == tail[:start]:
                return ends[0]
        if self._end_of_turn and behind.startswith(self._end_of_turn):
            return len(self._end_of_turn)
        return None if conversation[index].tool_calls else 0

    def _tail(self, conversation: Conversation, style: _Style) -> str | None:
        """What is written behind what the last message says."""
        marked = self._marked(conversation, style, range(len(conversation)))
        try:
            text = self._write(marked, False)
        except ModelError:
            return None
        marks = {mark for pairs in self._pairs.values() for pair in pairs for mark in pair}
        last = max((text.rfind(end) for _, end in self._pairs[len(conversation) - 1]), default=-1)
        if last < 0:
            return None
        return "".join(character for character in text[last:] if character not in marks)

    def _marked(
        self, conversation: Conversation, style: _Style, indices: Sequence[int]
    ) -> Conversation:
        return tuple(
            self._with_marks(message, index, style) if index in indices else message
            for index, message in enumerate(conversation)
        )

    def _with_marks(self, message: Message, index: int, style: _Style) -> Message:
        count = len(message.parts) + len(message.tool_calls)
        pairs = self._pairs.setdefault(index, [])
        while len(pairs) < count:
            pairs.append((self._mark(), self._mark()))
        given = iter(pairs)
        content: str | tuple[Part, ...]
        if isinstance(message.content, str):
            content = _around(message.content, next(given), style)
        else:
            content = tuple(_part(part, next(given), style) for part in message.content)
        calls = tuple(
            replace(call, name=_around(call.name, next(given), style))
            for call in message.tool_calls
        )
        return replace(message, content=content, tool_calls=calls)


def _part(part: Part, marks: tuple[str, str], style: _Style) -> Part:
    match part:
        case TextPart(text):
            return TextPart(_around(text, marks, style))
        case ThinkingPart(thinking):
            return ThinkingPart(_around(thinking, marks, style))
        case _:
            return part


def _around(text: str, marks: tuple[str, str], style: _Style) -> str:
    opening, closing = marks
    if not text.strip() and not style.empty:
        return text
    start = len(text) - len(text.lstrip(style.behind))
    end = len(text.rstrip(style.before))
    if start > end:
        start = end = 0
    return f"{text[:start]}{opening}{text[start:end]}{closing}{text[end:]}"
