"""What one writes first: PEFT and AdamW on pairs of question and correction, epoch after epoch.

No replay, no other wordings, no gate, and no end before the epochs are over.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from learners import Chat, Training
from lessons import SPARE, Taught, unrelated_questions, unseen
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from shammah.adapters.weights import LoraWeights
from shammah.messages import assistant, user
from shammah.models.load import load_base_model
from shammah.settings import ModelSettings

RANK, ALPHA = 16, 32
BATCH = 4
EPOCHS = 20
"""Ending sooner, once the loss was small, cost other wordings and saved no unrelated answers."""
RATES = (3e-4, 1e-3, 2e-3, 5e-3)
UNRELATED = 60
"""Questions that a learning rate is chosen on."""


class PlainPeft:
    """LoRA of rank 16 on every linear layer, in fp32; each round trains on from the one before.

    The best learning rate of `RATES` is found on lessons that are not measured, if none is given.
    """

    def __init__(
        self,
        chat: Chat,
        settings: ModelSettings,
        lessons: Sequence[Taught],
        unrelated: Sequence[str],
        *,
        threads: int,
        learning_rate: float | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._chat = chat
        self._settings = settings
        self._rate = learning_rate or self._best_rate(lessons, unrelated)
        self._begin()

    def learn(self, lessons: Sequence[Taught]) -> Training:
        began = time.monotonic()
        steps = self._train(lessons, self._rate)
        seconds = time.monotonic() - began
        self._chat.use(self._weights())
        return Training(steps, seconds)

    def close(self) -> None:
        self._chat.use(None)

    def _begin(self) -> None:
        """A new adapter on a base of its own: PEFT changes the model that it is given."""
        base = load_base_model(self._settings.model_copy(update={"dtype": "fp32"}))
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        self._model: Any = get_peft_model(base.model, config)

    def _train(self, lessons: Sequence[Taught], learning_rate: float) -> int:
        model = self._model
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=learning_rate)
        examples = [self._example(lesson) for lesson in lessons]
        order = torch.Generator().manual_seed(0)
        steps = 0
        for _ in range(EPOCHS):
            shuffled = torch.randperm(len(examples), generator=order).tolist()
            for first in range(0, len(shuffled), BATCH):
                chosen = [examples[index] for index in shuffled[first : first + BATCH]]
                optimizer.zero_grad()
                model(**_padded(chosen)).loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                steps += 1
        model.eval()
        return steps

    def _example(self, lesson: Taught) -> tuple[list[int], list[int]]:
        """Token ids, and the labels, which are set where the answer is."""
        rendered = self._chat.renderer.supervised((user(lesson.ask), assistant(lesson.answer)))
        labels = [
            token if weight else -100
            for token, weight in zip(rendered.tokens, rendered.weights, strict=True)
        ]
        return rendered.tokens, labels

    def _weights(self) -> LoraWeights:
        begin, end = "base_model.model.", ".lora_A.weight"
        tensors = {
            name: tensor.detach().clone()
            for name, tensor in get_peft_model_state_dict(self._model).items()
        }
        modules = {
            name.removeprefix(begin).removesuffix(end): (a, tensors[name.replace("_A.", "_B.")])
            for name, a in tensors.items()
            if name.endswith(end)
        }
        return LoraWeights(modules, ALPHA / RANK)

    def _best_rate(self, lessons: Sequence[Taught], unrelated: Sequence[str]) -> float:
        """By the sum of taught, other wordings and unchanged answers, on a set and on unrelated
        questions that are not measured."""
        spare = [lesson for lesson in lessons if lesson.set == SPARE]
        apart = unrelated_questions(UNRELATED, lessons, without=unrelated)
        other = [(text, lesson.answer) for lesson in spare for text in unseen(lesson)]
        self._chat.use(None)
        before = self._chat.answers(apart)
        sums = {}
        for rate in RATES:
            self._begin()
            self._train(spare, rate)
            self._chat.use(self._weights())
            taught = share(self._chat.answers([i.ask for i in spare]), [i.answer for i in spare])
            phrasings = share(
                self._chat.answers([text for text, _ in other]), [answer for _, answer in other]
            )
            unchanged = share(self._chat.answers(apart), before)
            sums[rate] = taught + phrasings + unchanged
            print(
                f"plain PEFT at {rate:g}: taught {taught:.2f}, phrasings {phrasings:.2f}, "
                f"unchanged {unchanged:.2f}",
                flush=True,
            )
        return max(sums, key=sums.__getitem__)


def share(said: Sequence[object], wanted: Sequence[object]) -> float:
    """How many answers are word by word what was wanted."""
    return sum(a == b for a, b in zip(said, wanted, strict=True)) / max(1, len(wanted))


def _padded(examples: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(tokens) for tokens, _ in examples)

    def rows(fill: int, lists: Sequence[list[int]]) -> torch.Tensor:
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in lists])

    return {
        "input_ids": rows(0, [tokens for tokens, _ in examples]),
        "labels": rows(-100, [labels for _, labels in examples]),
        "attention_mask": rows(0, [[1] * len(tokens) for tokens, _ in examples]),
    }
