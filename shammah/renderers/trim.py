"""Conversations cut down to what a model can read, by whole turns.

Knows how many tokens a conversation takes from its renderer, and nothing about models.
"""

from __future__ import annotations

from shammah.errors import ContextTooLongError
from shammah.messages import Conversation
from shammah.renderers.base import Renderer


def trim_conversation(
    renderer: Renderer, conversation: Conversation, context_length: int, reserve: int
) -> tuple[Conversation, int]:
    """The conversation without its oldest turns, as few as possible, and how many were dropped.

    A turn is a user's message with everything up to the next one. System messages and the last
    turn are always kept.

    Args:
        context_length: tokens the model can read and write altogether.
        reserve: tokens to keep free for the answer; at most half the context is kept free.

    Raises:
        ContextTooLongError: the last turn alone does not leave room for an answer.
    """
    system = tuple(message for message in conversation if message.role == "system")
    turns: list[Conversation] = []
    for message in conversation:
        if message.role == "user" or (message.role != "system" and not turns):
            turns.append((message,))
        elif message.role != "system":
            turns[-1] = (*turns[-1], message)
    room = context_length - min(reserve, context_length // 2)

    def kept(dropped: int) -> Conversation:
        return system + tuple(message for turn in turns[dropped:] for message in turn)

    def tokens(dropped: int) -> int:
        return len(renderer.generation_prompt(kept(dropped)))

    if tokens(0) <= room:
        return conversation, 0
    # The length falls with every turn dropped, so the fewest to drop is found by halving.
    low, high = 0, max(len(turns) - 1, 0)
    while low < high:
        middle = (low + high) // 2
        if tokens(middle) <= room:
            high = middle
        else:
            low = middle + 1
    needed = tokens(low)
    # The last turn may take from what was to be kept free, but an answer needs some of it.
    if needed > context_length - min(reserve, max(context_length // 16, 1)):
        raise ContextTooLongError(
            f"The message takes {needed} tokens with the format around it, and the model reads "
            f"{context_length} altogether.",
            hint="Shorten the message (or the system text), or use a model with a longer context.",
        )
    return kept(low), low
