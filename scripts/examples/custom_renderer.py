"""A renderer of one's own: ChatML, with an instruction before conversations that have none.

    shammah train sft --data faq.csv --renderer briefed \
        --plugins scripts/examples/custom_renderer.py

The adapter remembers what it was trained with, and the chat says so where it writes otherwise.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from shammah import Message, register_renderer
from shammah.renderers.family import Turn
from shammah.renderers.qwen3 import Qwen3Renderer


class Briefed(Qwen3Renderer):
    def __init__(self, tokenizer: Any, stop_tokens: Iterable[int] = ()) -> None:
        super().__init__(tokenizer, stop_tokens, mode="instruct")
        self.name = "briefed"

    def turns(self, conversation: tuple[Message, ...], tools: Any) -> Iterator[Turn]:
        if conversation[0].role != "system":
            yield Turn("<|im_start|>system\nAnswer in a line.<|im_end|>\n", ())
        yield from super().turns(conversation, tools)


register_renderer("briefed", Briefed)
