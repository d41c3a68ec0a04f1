"""Conversations scored by a model with a scalar head, at the token that ends the last answer.

Knows conversations and their tokens; how a score is made is the client's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shammah.errors import AdapterInvalidError, EmptyLessonError
from shammah.ports.datum import Datum, ModelInput, TensorData
from shammah.settings import LoraSettings, TrainingSettings
from shammah.training.loops.pairs import Pair, made_pairs
from shammah.training.lora import scaling
from shammah.training.reward_client import RewardTrainingClient, head_file, read_head

if TYPE_CHECKING:
    from shammah.datasets.formatters.base import ChatExample
    from shammah.messages import Conversation
    from shammah.models.load import BaseModel
    from shammah.renderers.base import Renderer


class RewardModel:
    """Scores whole conversations: the higher, the better the last answer."""

    def __init__(self, client: RewardTrainingClient, renderer: Renderer) -> None:
        """
        Args:
            client: with the adapter and head as they are whenever something is scored.
        """
        self._client, self._renderer = client, renderer

    @classmethod
    def load(cls, base: BaseModel, renderer: Renderer, adapter: Path) -> RewardModel:
        """The model of an adapter file that `RewardTrainingClient.save_weights` wrote. The base
        model is changed in place until `close`.

        Raises:
            AdapterInvalidError: the adapter or the head beside it is missing, or of another model.
        """
        record, _ = read_head(head_file(adapter))
        if record.fingerprint != base.fingerprint:
            raise AdapterInvalidError(
                f"The reward model {adapter} is of another base model.",
                hint="Load the model it was trained on.",
            )
        lora = LoraSettings(
            rank=record.rank,
            alpha=record.alpha,
            rslora=record.rslora,
            target_modules=record.target_modules,
        )
        scale = scaling(record.alpha, record.rank, record.rslora)
        client = RewardTrainingClient(base, lora, TrainingSettings(), adapter, parent_scaling=scale)
        try:
            client.load_head(adapter)
        except AdapterInvalidError:
            client.close()
            raise
        return cls(client, renderer)

    def score(self, conversations: Sequence[Conversation]) -> NDArray[np.float32]:
        """float32[n]. Differences between scores of one prompt's answers are log-odds that the one
        is better than the other.

        Raises:
            InputError: a conversation does not end with an answer, or cannot be rendered.
        """
        return self._client.scores([score_datum(each, self._renderer) for each in conversations])

    def close(self) -> None:
        """Give the base model back as it was."""
        self._client.close()


def score_datum(conversation: Conversation, renderer: Renderer) -> Datum:
    """A datum with a weight of 1 at the token that ends the last answer, which is read too; the
    answer's tokens are its `answer`."""
    rendered = renderer.supervised(conversation)
    learned = np.flatnonzero(np.asarray(rendered.weights) > 0)
    if not len(learned):
        raise EmptyLessonError("A conversation has no answer to score.")
    tokens = rendered.tokens[: int(learned[-1]) + 1]
    weights = np.zeros(len(tokens), dtype=np.float32)
    weights[-1] = 1.0
    answer = np.zeros(len(tokens), dtype=np.int64)
    answer[learned] = 1
    # Nothing is predicted at it; a datum has targets all the same.
    return Datum(
        ModelInput.of(tokens),
        {
            "target_tokens": TensorData.ints(tokens),
            "weights": TensorData(weights),
            "answer": TensorData(answer),
        },
    )


def scored_pairs(examples: Iterable[ChatExample], renderer: Renderer) -> list[Pair]:
    """Pairs of what `score_datum` makes of the chosen and the rejected conversation.

    Raises:
        TrainingError: an example has no rejected answer, or no chosen one.
        InputError, EmptyLessonError: a conversation cannot be rendered, or has no answer.
    """
    return made_pairs(examples, lambda conversation: score_datum(conversation, renderer))
