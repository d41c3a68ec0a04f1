"""Text to tokens where some of the text must stay text.

What a person writes may look like a token that steers the model (`<|im_end|>`). Such look-alikes
are kept out of the reach of the tokenizer's special tokens. Knows nothing about conversations.

The fast way cuts text at the tokens that every tokenizer cuts it at first, and gives all pieces to
the tokenizer in one call. Vocabularies for which the place of a piece matters go the slow way.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Generic, TypeVar

Mark = TypeVar("Mark")


class TextTokenizer:
    """A Hugging Face tokenizer, seen as a function from text to token ids and back."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = list(tokenizer.added_tokens_decoder.values())
        special = {token.content for token in added if token.special}
        special |= set(tokenizer.all_special_tokens)
        # Some families steer with tokens they do not call special, such as <tool_call>. Runs of
        # spaces are added tokens too in others, and are just text.
        steering = {token.content for token in added if _looks_like_markup(token.content)}
        self.special_ids = frozenset(tokenizer.convert_tokens_to_ids(sorted(special)))
        self._ids = {
            token.content: number for number, token in tokenizer.added_tokens_decoder.items()
        }
        self._special = _any_of(special)
        self._steering = _any_of(special | steering)
        # Whether what comes before a text does not matter for its tokens.
        self._free = self.encode("a")[:1] == self.encode("\na")[1:] != []
        self._anchor = None if self._free else self._find_anchor(special)
        self._cuts = self._find_cuts()

    def look_alikes(self, text: str, *, all_steering: bool) -> list[tuple[int, int]]:
        """Start and end of each place in `text` that the tokenizer would take for a special token.

        Args:
            all_steering: also tokens like `<tool_call>` that steer without being called special.
        """
        pattern = self._steering if all_steering else self._special
        return [match.span() for match in pattern.finditer(text)] if pattern else []

    def encode(self, text: str) -> list[int]:
        """Token ids of text that may hold special tokens; none are added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_parts(
        self, parts: Iterable[tuple[str, bool]], *, continued: bool = False
    ) -> list[int]:
        """Token ids of consecutive parts of one text.

        Args:
            parts: text and whether it is literal; special tokens are recognised only in parts that
                are not.
            continued: some text came before, so that the first part is at no beginning.
        """
        return self.encode_marked([[(*part, None) for part in parts]], continued=continued)[0]

    def encode_marked(
        self, runs: Iterable[Sequence[tuple[str, bool, Mark]]], *, continued: bool = False
    ) -> tuple[list[int], list[Mark]]:
        """Token ids of texts that are tokenized apart, one behind the other, and for each token the
        mark of the part that it begins in.

        Args:
            runs: the parts of each text, as in `encode_parts`, with a mark each. Neighbours that
                are not literal are one text to the tokenizer.
            continued: as in `encode_parts`.
        """
        if self._cuts is not None and self._is_plain():
            return self._encode_pieces(_pieces(runs, self._cuts, self._ids))
        tokens: list[int] = []
        marks: list[Mark] = []
        for run in runs:
            found, starts = self.encode_with_starts(
                _joined(run), continued=continued or bool(tokens)
            )
            borders = [0, *accumulate(len(text) for text, _, _ in run)]
            marks += [run[bisect_right(borders, start) - 1][2] for start in starts]
            tokens += found
        return tokens, marks

    def encode_with_starts(
        self, parts: Iterable[tuple[str, bool]], *, continued: bool = False
    ) -> tuple[list[int], list[int]]:
        """`encode_parts` the slow way, and for each token where in the joined text it begins.

        A token that is a part of a character begins where the character does.
        """
        tokens: list[int] = []
        starts: list[int] = []
        position = 0
        for text, literal in parts:
            # A special token cannot be recognised when its first character comes alone.
            for piece in (text[:1], text[1:]) if literal else (text,):
                if piece:
                    found, begins = self._encode(piece, continued or bool(tokens))
                    tokens += found
                    starts += [position + begin for begin in begins]
                    position += len(piece)
        return tokens, starts

    def token_id(self, text: str) -> int | None:
        """The number of the added token that is written like this, if there is one."""
        return self._ids.get(text)

    def decode_whole(self, tokens: Sequence[int]) -> str:
        """Text of tokens, with special tokens as they are written."""
        return str(
            self.tokenizer.decode(
                list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def decode(self, tokens: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _encode(self, text: str, continued: bool) -> tuple[list[int], list[int]]:
        # Sentencepiece vocabularies put a space before the beginning of a text. Behind a special
        # token it is not a beginning.
        if continued and self._anchor is not None:
            anchor_text, anchor_id = self._anchor
            tokens, starts = self._encode_whole(anchor_text + text)
            if tokens[:1] == [anchor_id]:
                return tokens[1:], [start - len(anchor_text) for start in starts[1:]]
        return self._encode_whole(text)

    def _encode_whole(self, text: str) -> tuple[list[int], list[int]]:
        fast = self.tokenizer.is_fast
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
        tokens = list(found["input_ids"])
        if fast:
            return tokens, [start for start, _ in found["offset_mapping"]]
        return tokens, [len(self.decode_whole(tokens[:at])) for at in range(len(tokens))]

    def _is_plain(self) -> bool:
        """Whether the tokenizer is not set to cut, to fill, or to read special tokens as text."""
        backend = self.tokenizer.backend_tokenizer
        changed = backend.truncation or backend.padding or backend.encode_special_tokens
        return not changed

    def _encode_pieces(self, pieces: Sequence[_Piece[Mark]]) -> tuple[list[int], list[Mark]]:
        backend = self.tokenizer.backend_tokenizer
        # Each text once: headers come again and again.
        whole = list({p.text: None for p in pieces if p.token is None and len(p.marks) == 1})
        encoded = backend.encode_batch_fast(whole, add_special_tokens=False) if whole else []
        known = {text: found.ids for text, found in zip(whole, encoded, strict=True)}
        tokens: list[int] = []
        marks: list[Mark] = []
        for piece in pieces:
            if piece.token is not None:
                tokens.append(piece.token)
                marks.append(piece.marks[0])
            elif len(piece.marks) == 1:
                found = known[piece.text]
                tokens += found
                marks += piece.marks * len(found)
            else:
                encoding = backend.encode(piece.text, add_special_tokens=False)
                tokens += encoding.ids
                # Blanks are not counted where a token has them; one of blanks alone lies before.
                starts = [end - 1 if start == end else start for start, end in encoding.offsets]
                borders = [bisect_left(starts, begin) for begin in piece.begins]
                for mark, begin, end in zip(
                    piece.marks, borders, [*borders[1:], len(starts)], strict=True
                ):
                    marks += [mark] * (end - begin)
        return tokens, marks

    def _find_cuts(self) -> re.Pattern[str] | None:
        """The added tokens that text is cut at before all else; None where the cut has effects on
        what is beside it."""
        if not (self._free and self.tokenizer.is_fast):
            return None
        added = [t for t in self.tokenizer.added_tokens_decoder.values() if not t.normalized]
        if any(token.lstrip or token.rstrip or token.single_word for token in added):
            return None
        longest_first = sorted((token.content for token in added), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _find_anchor(self, special: set[str]) -> tuple[str, int] | None:
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.content in special and not token.rstrip and not token.single_word:
                identifier = self.tokenizer.convert_tokens_to_ids(token.content)
                return token.content, int(identifier)
        return None


@dataclass(slots=True)
class _Piece(Generic[Mark]):
    """An added token, or text between two of them, with the marks of its parts and where in it
    each part begins."""

    text: str
    marks: list[Mark]
    begins: list[int]
    token: int | None = None


def _pieces(
    runs: Iterable[Sequence[tuple[str, bool, Mark]]],
    cuts: re.Pattern[str],
    ids: dict[str, int],
) -> list[_Piece[Mark]]:
    pieces: list[_Piece[Mark]] = []
    for run in runs:
        last: _Piece[Mark] | None = None  # what more text belongs to
        for text, literal, mark in run:
            if literal:
                pieces += [_Piece(half, [mark], [0]) for half in (text[:1], text[1:]) if half]
                last = None
                continue
            at = 0
            for found in cuts.finditer(text):
                if at < found.start():
                    _add(pieces, last, text[at : found.start()], mark)
                at, last = found.end(), None
                pieces.append(_Piece("", [mark], [0], ids[found[0]]))
            if at < len(text):
                last = _add(pieces, last, text[at:], mark)
    return pieces


def _add(
    pieces: list[_Piece[Mark]], last: _Piece[Mark] | None, text: str, mark: Mark
) -> _Piece[Mark]:
    if last is None:
        last = _Piece(text, [mark], [0])
        pieces.append(last)
        return last
    if last.marks[-1] != mark:
        last.marks.append(mark)
        last.begins.append(len(last.text))
    last.text += text
    return last


def _joined(run: Iterable[tuple[str, bool, Any]]) -> list[tuple[str, bool]]:
    """Neighbours that are one text to the tokenizer. Two literal ones stay apart: each is known to
    hold one look-alike."""
    whole: list[tuple[str, bool]] = []
    for literal, pieces in groupby(run, key=lambda part: part[1]):
        texts = [text for text, _, _ in pieces]
        whole += [(text, True) for text in texts] if literal else [("".join(texts), False)]
    return whole


def _looks_like_markup(token: str) -> bool:
    return len(token) > 2 and token[0] in "<[" and token[-1] in ">]" and not re.search(r"\s", token)


def _any_of(texts: set[str]) -> re.Pattern[str] | None:
    # Longest first, so that a token that begins like another is found whole.
    found = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None
