"""Text to tokens where some of the text must stay text.

What a person writes may look like a token that steers the model (`<|im_end|>`). Such look-alikes
are kept out of the reach of the tokenizer's special tokens. Knows nothing about conversations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


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
        self._anchor = self._find_anchor(special)

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
        return self.encode_with_starts(parts, continued=continued)[0]

    def encode_with_starts(
        self, parts: Iterable[tuple[str, bool]], *, continued: bool = False
    ) -> tuple[list[int], list[int]]:
        """`encode_parts`, and for each token where in the joined text it begins.

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

    def _find_anchor(self, special: set[str]) -> tuple[str, int] | None:
        if self.encode("a")[:1] == self.encode("\na")[1:] != []:
            return None  # what comes before does not matter
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.content in special and not token.rstrip and not token.single_word:
                identifier = self.tokenizer.convert_tokens_to_ids(token.content)
                return token.content, int(identifier)
        return None


def _looks_like_markup(token: str) -> bool:
    return len(token) > 2 and token[0] in "<[" and token[-1] in ">]" and not re.search(r"\s", token)


def _any_of(texts: set[str]) -> re.Pattern[str] | None:
    # Longest first, so that a token that begins like another is found whole.
    found = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found))) if found else None
