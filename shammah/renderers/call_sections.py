"""Reads answers whose calls stand in a section of their own, each with a mark within.

    text SECTION CALL name SEPARATOR arguments CALL_END CALL ... SECTION_END

Thoughts may come before, between `<think>` and `</think>`. How a call is written between its marks
is the family's to know.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from shammah.renderers.parsing import AnswerParser
from shammah.renderers.tokenization import TextTokenizer

THINK, THOUGHT = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class CallMarks:
    """What opens and closes a section of calls and each call in it, and what stands within one."""

    section: str
    section_end: str
    call: str
    separator: str
    call_end: str


class CallSectionParser(AnswerParser):
    """Thought, text and calls.

    Args:
        text: the tokenizer.
        stop_tokens: tokens that end the answer.
        calls: the marks of calls.
        strange: tokens of the format that do not belong in an answer; where the vocabulary has no
            such token, the same letters are text.
        thoughts: whether to look for thoughts: None only where the vocabulary has tokens for them.
        thinking: the prompt has opened a thought.
    """

    def __init__(
        self,
        text: TextTokenizer,
        stop_tokens: Collection[int],
        calls: CallMarks,
        strange: Iterable[str] = (),
        *,
        thoughts: bool | None = None,
        thinking: bool = False,
    ) -> None:
        marks = [calls.section, calls.section_end, calls.call, calls.separator, calls.call_end]
        tags = [THINK, THOUGHT]
        if thoughts:
            marks += tags
        elif thoughts is None:
            strange = (*strange, *tags)
        marks += [mark for mark in strange if text.token_id(mark) is not None]
        super().__init__(text, marks, stop_tokens)
        self._calls_of = calls
        self._next: dict[tuple[str | None, str], str | None] = {
            (None, THINK): THINK,
            (THINK, THOUGHT): None,
            (None, calls.section): calls.section,
            (calls.section, calls.call): calls.call,
            (calls.call, calls.call_end): calls.section,
            (calls.section, calls.section_end): None,
        }
        # Within what was opened last, or in the text.
        self._inside: str | None = THINK if thinking else None
        self._raw = ""

    @abstractmethod
    def read_call(self, raw: str) -> None:
        """Adds the call that was written between its marks, or the problem with it."""

    def mark(self, mark: str) -> None:
        marks, inside = self._calls_of, self._inside
        if inside == marks.call and mark == marks.separator:
            self._raw += mark
        elif (inside, mark) in self._next:
            self._inside = self._next[inside, mark]
            raw, self._raw = self._raw, ""
            if inside == marks.call:
                self.read_call(raw)
            elif raw.strip():
                self.problem(raw, "it stands between tool calls")
            if mark == THOUGHT:
                self.close()
            elif inside is None:
                self.settle()
        elif inside == marks.call:
            self.problem(f"{marks.call}{self._raw}{mark}", "a tool call does not end")
            self._raw = ""
            after = {marks.call: marks.call, marks.section_end: None}
            self._inside = after.get(mark, marks.section)
        elif inside == THINK and mark == marks.section:
            self.close()
            self.problem(mark, "the thought before it does not end")
            self._inside = mark
        else:
            self.problem(mark, "it is out of place")

    def text(self, text: str) -> None:
        if self._inside in (self._calls_of.section, self._calls_of.call):
            self._raw += text
        elif self._inside == THINK:
            self.think(text)
        elif self._parts or text.strip("\n") or not self._calls:
            self.say(text)

    def end(self) -> None:
        marks = self._calls_of
        if self._inside == marks.call:
            self.problem(f"{marks.call}{self._raw}", "the answer ended within a tool call")
        elif self._inside == marks.section:
            self.problem(self._raw.strip(), "the answer ended within its tool calls")
        elif self._inside == THINK:
            self.close()
            self.problem("", "the answer ended within a thought")
        else:
            self.settle()
