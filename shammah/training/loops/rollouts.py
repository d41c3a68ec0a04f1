"""Answers drawn from the model that is trained, and what is learned of them.

Every draw has a seed that follows from the run's seed and the draw's place in the run alone, so
that a run that goes on draws what it would have drawn. Knows no reward and no loss.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from shammah.errors import TrainingError
from shammah.messages import Conversation
from shammah.ports.datum import Datum, ModelInput, TensorData
from shammah.ports.sampling_client import (
    BatchLogprobs,
    BatchSampling,
    SamplingClient,
    SamplingParams,
    Scoring,
    TokensWithLogprobs,
)
from shammah.renderers.base import Renderer
from shammah.training.loops.environments import Environment, Outcome, Tally

AT_ONCE = 16
"""Inputs that a scorer without batches is asked about together."""


def generator(*place: int) -> np.random.Generator:
    """PCG64 of a place in a run: the seed, and what tells this draw from the others."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(place)))


def seed_of(*place: int) -> int:
    """A sampling seed of a place in a run."""
    return int(generator(*place).integers(1 << 48))


def chosen(count: int, size: int, seed: int, number: int) -> list[int]:
    """The indices of batch `number`: each epoch goes through all in an order of its own."""
    per_epoch = -(-count // size)
    epoch, at = divmod(number, per_epoch)
    order = generator(seed, epoch).permutation(count)
    return [int(index) for index in order[at * size : (at + 1) * size]]


@dataclass(slots=True)
class Row:
    """Tokens that were read and drawn in turn. `at` are the places of those that were drawn; the
    rest is of these: `logprobs` that they were drawn with, and what is learned of them."""

    tokens: list[int]
    at: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    """Of the base or the teacher, where it was asked."""
    weight: float = 1.0
    """Of each drawn token."""

    def add(self, prompt: Sequence[int], sample: TokensWithLogprobs) -> None:
        """Go on with a prompt that begins with the tokens so far, and a sample."""
        self.tokens = [*prompt, *sample.tokens]
        self.at += range(len(prompt), len(self.tokens))
        self.logprobs += sample.logprobs

    def datum(self) -> Datum:
        """What a policy loss takes, with `reference` where there is one."""
        length = self.at[-1]
        places = np.asarray(self.at) - 1

        def placed(values: Sequence[float]) -> TensorData:
            row = np.zeros(length, dtype=np.float32)
            row[places] = values
            return TensorData(row)

        inputs = {
            "target_tokens": TensorData.ints(self.tokens[1 : length + 1]),
            "weights": placed([self.weight] * len(self.at)),
            "logprobs": placed(self.logprobs),
            "advantages": placed(self.advantages),
        }
        if self.reference:
            inputs["reference"] = placed(self.reference)
        return Datum(ModelInput.of(self.tokens[:length]), inputs)


@dataclass(slots=True)
class Episode:
    """`rows` hold what was drawn: one, as long as each prompt goes on from the one before."""

    rows: list[Row] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    samples: int = 0
    unended: int = 0
    """Samples that `max_tokens` or the context cut."""
    done: bool = False

    def add(self, prompt: Sequence[int], sample: TokensWithLogprobs) -> None:
        last = self.rows[-1].tokens if self.rows else None
        if last is None or list(prompt[: len(last)]) != last:
            self.rows.append(Row([]))
        self.rows[-1].add(prompt, sample)
        self.samples += 1
        self.unended += sample.stop_reason == "length"

    @property
    def tokens(self) -> int:
        """Drawn ones."""
        return sum(len(row.at) for row in self.rows)


@dataclass(slots=True)
class Batch:
    """What one draw gave, and the figures that were found then."""

    number: int
    rows: list[Row]
    figures: dict[str, float]

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values, exact to the bit."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Batch:
        rows = [Row(**row) for row in state["rows"]]
        return cls(int(state["number"]), rows, dict(state["figures"]))

    @property
    def tokens(self) -> int:
        """Of the rows, read and drawn."""
        return sum(len(row.tokens) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Drawing:
    """How answers are drawn. `context` is how many tokens the model reads."""

    renderer: Renderer
    max_tokens: int
    temperature: float
    max_turns: int = 1
    context: int = 1 << 30

    def params(self, seed: int) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=seed,
            stop_tokens=tuple(self.renderer.stop_tokens),
            stop_texts=tuple(self.renderer.stop_texts),
        )

    async def samples(
        self, sampler: SamplingClient, prompts: Sequence[tuple[int, ...]], place: Sequence[int]
    ) -> list[TokensWithLogprobs]:
        """A sample for each prompt. Those after the same prompt are one group, which reads it once;
        where the client can, all groups are one batch."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(index)
        asked = [
            (ModelInput.of(prompt), self.params(seed_of(*place, members[0])), len(members))
            for prompt, members in groups.items()
        ]
        if isinstance(sampler, BatchSampling):
            found = list(await sampler.sample_batch(asked))
        else:
            found = await together([sampler.sample(*each) for each in asked])
        placed = {
            index: sample
            for members, samples in zip(groups.values(), found, strict=True)
            for index, sample in zip(members, samples, strict=True)
        }
        return [placed[index] for index in range(len(prompts))]

    async def play(
        self, sampler: SamplingClient, environments: Sequence[Environment], place: Sequence[int]
    ) -> list[Episode]:
        """An episode of each environment, all of them turn by turn together. One ends when its
        environment says so, after `max_turns`, or where the context has no room for a turn more.

        Args:
            place: what seeds follow from.
        """
        episodes = [Episode() for _ in environments]
        talks: list[Conversation] = [await settled(each.reset()) for each in environments]
        going = list(range(len(environments)))
        for turn in range(self.max_turns):
            prompts = {at: tuple(self.renderer.generation_prompt(talks[at])) for at in going}
            if turn:
                going = [at for at in going if len(prompts[at]) < self.context]
            if not going:
                break
            found = await self.samples(sampler, [prompts[at] for at in going], (*place, turn))
            outcomes = await together(
                [
                    self._answered(environments[at], sample, prompts[at])
                    for at, sample in zip(going, found, strict=True)
                ]
            )
            for at, sample, (said, outcome) in zip(going, found, outcomes, strict=True):
                episodes[at].add(prompts[at], sample)
                episodes[at].tally.add(outcome.reward)
                episodes[at].done = outcome.done
                talks[at] = (*talks[at], said, *outcome.messages)
            going = [at for at in going if not episodes[at].done]
        return episodes

    async def _answered(
        self, environment: Environment, sample: TokensWithLogprobs, prompt: Sequence[int]
    ) -> tuple[Any, Outcome]:
        said = self.renderer.parse(sample.tokens, prompt).message
        return said, await settled(environment.step(said.text))


async def settled(value: Any) -> Any:
    """The value itself, awaited where it is to be."""
    return await value if inspect.isawaitable(value) else value


async def together(waiting: Sequence[Any]) -> list[Any]:
    """The results in their order, at most `AT_ONCE` under way; the first failure ends the others
    and is raised as it is."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(each: Any) -> Any:
        async with room:
            return await each

    tasks = [asyncio.ensure_future(one(each)) for each in waiting]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def score(scorer: Scoring, rows: Sequence[Row]) -> list[list[float]]:
    """The log-probability of each drawn token of each row under another model.

    Raises:
        TrainingError: the model does not tell of all of them.
    """
    inputs = [ModelInput.of(row.tokens) for row in rows]
    if isinstance(scorer, BatchLogprobs):
        found = list(await scorer.compute_logprobs_batch(inputs))
    else:
        found = await together([scorer.compute_logprobs(each) for each in inputs])
    values = []
    for row, logprobs in zip(rows, found, strict=True):
        own = np.asarray(logprobs, dtype=np.float64)[row.at]
        if not np.isfinite(own).all():
            raise TrainingError("A model that was asked about samples finds some impossible.")
        values.append(own.tolist())
    return values


def drawn(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    """What all drawn tokens have of one kind, one row's after the other's."""
    return np.concatenate([np.asarray(getattr(row, name), dtype=np.float64) for row in rows])


def now(rows: Sequence[Row], logprobs: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Of the drawn tokens, out of what a client gave for the datums of the rows."""
    parts = [
        np.asarray(values, dtype=np.float64)[np.asarray(row.at) - 1]
        for row, values in zip(rows, logprobs, strict=True)
    ]
    return np.concatenate(parts)


def k3(of: NDArray[np.float64], to: NDArray[np.float64]) -> float:
    """An estimate of KL(of || to) from the log-probabilities of tokens drawn from `of`: the mean of
    `q/p - 1 - log(q/p)`, which is never negative (Schulman 2020, "Approximating KL Divergence")."""
    gap = to - of
    return float(np.mean(np.expm1(gap) - gap)) if len(gap) else 0.0


async def moved(client: Any, batch: Batch) -> float:
    """How far the model has gone from where a batch was drawn (`k3`)."""
    output = await client.forward([row.datum() for row in batch.rows], "cross_entropy")
    return k3(drawn(batch.rows, "logprobs"), now(batch.rows, cast("Any", output.logprobs)))
