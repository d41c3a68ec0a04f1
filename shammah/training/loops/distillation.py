"""Distillation: a model learns to answer as a teacher would.

On-policy the student draws, and the teacher says of each token how likely it finds it: the
advantage of a token is `-(log p_student - log p_teacher)`, so that the mean gradient is that of the
reverse divergence of each token given those before it (arXiv 2306.13649). Off-policy the answers
are the teacher's or given ones, learned as they stand or as the teacher's distributions. Teachers
are asked through ports; both read the same tokens, so that they need the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from shammah.datasets.formatters.base import ChatExample
from shammah.errors import TrainingError, UsageError
from shammah.ports.datum import Datum, TensorData
from shammah.ports.sampling_client import SamplingClient, Scoring, TopLogprobs
from shammah.ports.training_client import TrainingClient
from shammah.renderers.base import Renderer
from shammah.training.datums import from_tokens
from shammah.training.loops.draws import EVALUATION, FromDraws, marked, policy_loss
from shammah.training.loops.method import StepFigures
from shammah.training.loops.rollouts import (
    Batch,
    Drawing,
    Row,
    chosen,
    drawn,
    k3,
    score,
    together,
)


class OnPolicySettings(BaseModel):
    """Settings of `OnPolicyDistillation`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(8, ge=1)
    """Examples that a draw takes."""
    group: int = Field(4, ge=1)
    """Answers to each of them."""
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, gt=0)
    loss: str = "importance_sampling"
    inner_epochs: int = Field(1, ge=1)
    """Optimiser steps with each draw."""
    clip: float = Field(0.0, ge=0)
    """Advantages are kept within this; 0 leaves them."""
    center: bool = True
    """Take the mean over the draw off the advantages, which in the mean changes no gradient and
    makes it far less noisy: without it nearly every token that is drawn is made less likely."""
    measure_after: bool = True
    """As of `ReinforcementSettings`."""
    seed: int = Field(0, ge=0)


class OnPolicyDistillation(FromDraws[OnPolicySettings]):
    """A `Method` of `engine.run_loop`.

    Its measures: `reverse_kl`, the mean of log(p_student / p_teacher) over the drawn tokens, and
    `reverse_kl_k3`, the same divergence by an estimate that is never negative (`rollouts.k3`);
    `entropy`, `kl_before_k3`, `kl_after_k3`, `tokens` and `unended` as of `Reinforcement`.
    An evaluation has those that are of a draw, and `kl_after_k3`.

    Args:
        examples: their prompts are answered; answers they may have are not looked at.
        teacher: a model's sampling client, or a server's `backends.openai_logprobs`.
        held_out: for evaluations, with the same seeds each time.
    """

    name = "distillation"

    def __init__(
        self,
        examples: Sequence[ChatExample],
        teacher: Scoring,
        renderer: Renderer,
        settings: OnPolicySettings,
        *,
        held_out: Sequence[ChatExample] = (),
    ) -> None:
        """
        Raises:
            TrainingError: there is no example, or the loss is none for samples.
        """
        mark = marked(renderer, examples, settings, teacher)
        super().__init__(examples, renderer, settings, policy_loss(settings.loss), mark, held_out)
        self._teacher = teacher

    async def _evaluated(self, client: TrainingClient) -> Mapping[str, float]:
        return (await self._draw(client, self._held_out, EVALUATION)).figures

    async def _draw(
        self, client: TrainingClient, examples: Sequence[ChatExample], number: int
    ) -> Batch:
        settings = self.settings
        drawing = Drawing(self._renderer, settings.max_tokens, settings.temperature)
        prompts = [
            tuple(self._renderer.generation_prompt(example.prompt))
            for example in examples
            for _ in range(settings.group)
        ]
        samples = await drawing.samples(client.sampler, prompts, (settings.seed, number))
        rows = []
        for prompt, sample in zip(prompts, samples, strict=True):
            rows.append(Row([]))
            rows[-1].add(prompt, sample)
        for row, values in zip(rows, await score(self._teacher, rows), strict=True):
            row.reference = values
        student, teacher = drawn(rows, "logprobs"), drawn(rows, "reference")
        mean = float(np.mean(teacher - student)) if settings.center else 0.0
        for row in rows:
            gains = np.subtract(row.reference, row.logprobs) - mean
            if settings.clip:
                gains = gains.clip(-settings.clip, settings.clip)
            row.advantages = gains.tolist()
        figures = {
            "reverse_kl": float(np.mean(student - teacher)),
            "reverse_kl_k3": k3(student, teacher),
            "entropy": float(-student.mean()),
            "tokens": float(len(student)),
            "unended": sum(each.stop_reason == "length" for each in samples) / len(samples),
        }
        return Batch(number, rows, figures)


class OffPolicySettings(BaseModel):
    """Settings of `OffPolicyDistillation`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(8, ge=1)
    """Answers of a step."""
    answers: Literal["teacher", "given"] = "teacher"
    """Whose answers are learned: drawn from the teacher, or the examples' own."""
    match: Literal["text", "distribution"] = "text"
    """Learn the answers by cross-entropy, or the teacher's distribution at each of their tokens."""
    direction: Literal["forward", "reverse"] = "forward"
    """Of the divergence: from the teacher to the student, or the other way round."""
    top_k: int = Field(32, ge=1)
    """The teacher's likeliest tokens that are matched; all others count as one more."""
    samples: int = Field(1, ge=1)
    """Answers that the teacher gives to each prompt."""
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(1.0, ge=0)
    seed: int = Field(0, ge=0)


class OffPolicyDistillation:
    """A `Method` of `engine.run_loop`; each step learns some answers that are there already.

    The teacher's answers are drawn before the first step, from seeds of their own, and are the same
    where a run goes on.

    Args:
        teacher: a `SamplingClient` where it answers, and `TopLogprobs` where distributions are
            matched; with given texts alone it may be None.
    """

    name = "distillation"

    def __init__(
        self,
        examples: Sequence[ChatExample],
        teacher: SamplingClient | None,
        renderer: Renderer,
        settings: OffPolicySettings,
        *,
        held_out: Sequence[ChatExample] = (),
    ) -> None:
        """
        Raises:
            TrainingError: there is no example, or one has no answer that could be learned.
            UsageError: the teacher cannot do what is asked of it.
        """
        if not examples:
            raise TrainingError("There is no prompt to answer.")
        if settings.answers == "teacher" and teacher is None:
            raise UsageError("There is no teacher to answer.", hint="answers='given' needs none.")
        if settings.match == "distribution" and not isinstance(teacher, TopLogprobs):
            raise UsageError(
                "This teacher does not tell its distributions.",
                hint="match='text', or a local model for a teacher.",
            )
        if settings.answers == "given":
            for number, example in enumerate([*examples, *held_out], start=1):
                if example.answer is None:
                    raise TrainingError(f"Example {number} has no answer {example.place}.")
        each = settings.samples if settings.answers == "teacher" else 1
        self.settings = settings
        self.steps_per_epoch = -(-len(examples) * each // settings.batch)
        self._examples = examples
        self._held_out = held_out
        self._teacher: SamplingClient | None = teacher
        self._renderer = renderer
        self._answers: list[Row] = []
        self._tests: list[Row] | None = None
        self._matching: dict[int, Datum] = {}
        self._mark = marked(renderer, examples, settings, teacher)

    @property
    def loss(self) -> str:
        """By name."""
        if self.settings.match == "text":
            return "cross_entropy"
        return f"kl_divergence:direction={self.settings.direction}"

    def mark(self) -> str:
        """See `Method.mark`."""
        return self._mark

    async def step(self, client: TrainingClient, number: int) -> StepFigures:
        """See `Method.step`."""
        if not self._answers:
            self._answers = await self._rows(self._examples, 0)
        settings = self.settings
        indices = chosen(len(self._answers), settings.batch, settings.seed, number)
        datums = await self._datums([self._answers[index] for index in indices])
        output = await client.forward_backward(datums, self.loss)
        return StepFigures(output.mean_loss, output.tokens, output.metrics)

    async def evaluate(self, client: TrainingClient) -> Mapping[str, float]:
        """See `Method.evaluate`: `loss` on the answers to the held-out prompts."""
        if not self._held_out:
            return {}
        if self._tests is None:
            self._tests = await self._rows(self._held_out, EVALUATION)
        output = await client.forward(await self._datums(self._tests), self.loss)
        return {"loss": output.mean_loss, **output.metrics}

    def state_dict(self) -> dict[str, Any]:
        """See `Method.state_dict`: everything follows from the number of the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Method.load_state_dict`."""

    async def _rows(self, examples: Sequence[ChatExample], place: int) -> list[Row]:
        """The answers to be learned."""
        settings, rows = self.settings, []
        if settings.answers == "given":
            for example in examples:
                rendered = self._renderer.supervised(example.messages)
                at = [int(index) for index in np.flatnonzero(rendered.weights) if index]
                rows.append(Row(list(rendered.tokens), at))
            return rows
        assert self._teacher is not None  # by the constructor
        drawing = Drawing(self._renderer, settings.max_tokens, settings.temperature)
        prompts = [
            tuple(self._renderer.generation_prompt(example.prompt))
            for example in examples
            for _ in range(settings.samples)
        ]
        samples = await drawing.samples(self._teacher, prompts, (settings.seed, place))
        for prompt, sample in zip(prompts, samples, strict=True):
            rows.append(Row([]))
            rows[-1].add(prompt, sample)
        return rows

    async def _datums(self, rows: Sequence[Row]) -> list[Datum]:
        if self.settings.match == "text":
            return [_text(row) for row in rows]
        missing = [row for row in rows if id(row) not in self._matching]
        made = await together([self._distribution(row) for row in missing])
        # The rows are kept as long as this is, so that no other gets the id of one.
        self._matching.update((id(row), datum) for row, datum in zip(missing, made, strict=True))
        return [self._matching[id(row)] for row in rows]

    async def _distribution(self, row: Row) -> Datum:
        """The teacher's likeliest tokens where a token of the answer stands."""
        teacher = cast("TopLogprobs", self._teacher)  # the constructor looked
        datum = _text(row)
        tokens, logprobs = await teacher.compute_top_logprobs(
            datum.model_input, self.settings.top_k
        )
        k = tokens.shape[1]
        weights = datum.loss_fn_inputs["weights"].data.astype(np.float32)
        shared = np.repeat(weights[:, None] / k, k, axis=1)
        return replace(
            datum,
            loss_fn_inputs={
                "target_tokens": TensorData(tokens.astype(np.int64)),
                "weights": TensorData(shared.astype(np.float32)),
                # A token that the teacher rules out is as good as one that it never says.
                "reference": TensorData(np.maximum(logprobs, -100.0).astype(np.float32)),
            },
        )


def _text(row: Row) -> Datum:
    """The drawn tokens as they stand, each of weight 1."""
    weights = np.zeros(len(row.tokens))
    weights[row.at] = 1.0
    return from_tokens(row.tokens, weights.tolist(), float(len(row.at)))
