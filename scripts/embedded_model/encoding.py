"""Tokenizer and chat template; conversations to token ids with a mask over the answers.

Byte-level BPE, digits one by one, three special tokens and ChatML. Knows nothing about where
the conversations come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from embedded_model.rows import Conversation

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of one conversation; `learn[i]` says that token i is part of an answer."""

    ids: tuple[int, ...]
    learn: tuple[bool, ...]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE vocabulary of exactly `vocab_size` entries, specials included.

    Raises:
        ValueError: the texts hold too little for that many entries.
    """
    # For a model of the type qwen2, AutoTokenizer puts that family's own splitting in place of
    # what the file says, so the vocabulary is trained with the same. It keeps digits single.
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the corpus yields {tokenizer.get_vocab_size()} tokens, fewer than {vocab_size}"
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


class Encoder:
    """Conversations to token ids, as the chat template would render them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        (start,), (self.end,) = self.ids(TURN_START), self.ids(TURN_END)
        self._newline = self.ids("\n")
        self._roles = {
            role: (start, *self.ids(role + "\n")) for role in ("system", "user", "assistant")
        }

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, conversation: Conversation) -> tuple[int, ...]:
        """Tokens up to the point where the assistant begins to answer."""
        return (*self.row(conversation).ids, *self._roles["assistant"])

    def row(self, conversation: Conversation, kept_tokens: int | None = None) -> EncodedRow:
        """All turns; only the assistant's words and the token that ends them are learned.

        With `kept_tokens` the row ends after so many tokens of the last answer.
        """
        ids: list[int] = []
        learn: list[bool] = []
        for number, (role, content) in enumerate(conversation, start=1):
            head = self._roles[role]
            body = (*self.ids(content), self.end)
            if number == len(conversation) and kept_tokens is not None:
                body = body[:kept_tokens]
            ids.extend((*head, *body, *self._newline))
            learn.extend([False] * len(head))
            learn.extend([role == "assistant"] * len(body))
            learn.extend([False] * len(self._newline))
        return EncodedRow(tuple(ids), tuple(learn))
