"""Learning from pairs of answers: DPO and its kin.

| loss | of each pair |
| --- | --- |
| `dpo` (`dpo:variant=ipo`, `dpo:supervised=0.2`), all losses of pairs | one rather than the other |
| `kto` | towards the chosen answer, away from the rejected one, each by itself |
| `npo` | away from the rejected one |

In a mixture with a loss of pairs (`1 dpo, 0.2 cross_entropy`) losses of tokens are of the chosen
answer, as a rejected one weighs next to nothing. What is measured: with l = log p - log p_ref of an
answer, in nats, `reward_chosen` and `reward_rejected` are the means of l (DPO's implicit reward,
before beta), `margin` their difference, `accuracy` the share of pairs with a margin above 0 (none
before the first step), `likelier` the share whose chosen answer is the likelier one outright. `kl`
estimates how far the model has moved from the reference, as the mean of (log p - log p_ref)^2 / 2
over the answers' tokens (Schulman 2020, "Approximating KL Divergence", k2): these are tokens of the
data, not drawn from the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shammah.errors import TrainingError
from shammah.ports.datum import Datum, TensorData
from shammah.ports.training_client import ForwardBackwardOutput, TrainingClient
from shammah.training import losses
from shammah.training.datums import datum_weight, from_tokens, reweighted
from shammah.training.loops import references
from shammah.training.loops.method import StepFigures
from shammah.training.loops.pairs import Pair
from shammah.training.loops.windowed import Windowed
from shammah.training.losses.registry import name_of

Takes = Literal["pairs", "both", "rejected"]


class PreferenceMethod(Windowed):
    """A `Method` for `run_loop`."""

    name = "preference"

    def __init__(
        self,
        pairs: Sequence[Pair],
        held_out: Sequence[Pair] = (),
        *,
        loss: str = "dpo",
        batch_size: int = 16,
        accumulation: int = 1,
        seed: int = 0,
    ) -> None:
        """
        Args:
            pairs: what is learned from; `loops.pairs.pairs_of` makes them of examples.
            held_out: pairs that are evaluated on alone.
            loss: as `losses.get` takes it.
            batch_size: pairs of a pass. accumulation: passes of an optimiser step.

        Raises:
            TrainingError: there is no pair, or no such loss, or it is none of preferences.
        """
        super().__init__(
            loss, len(pairs), (pairs, held_out),
            batch_size=batch_size, accumulation=accumulation, seed=seed,
        )  # fmt: skip
        self._loss, self._takes = loss, _takes(loss)
        self._kinds = ("rejected",) if self._takes == "rejected" else ("chosen", "rejected")
        self._datums = [each for pair in (*pairs, *held_out) for each in _members(pair)]
        self._answers = len(self._datums)
        if "kl" in losses.get(loss).needs:
            # Answers to other prompts than their own tell how far the model has moved altogether.
            self._datums += _exchanged([pair.chosen for pair in pairs])
            self._datums += _exchanged([pair.chosen for pair in held_out])
        self._referenced: list[Datum] | None = None

    async def step(self, client: TrainingClient, number: int) -> StepFigures:
        await self._compare_with(client, number)
        batches = self._windows.batches(number)
        moved = await self._moved(client, np.concatenate(batches))
        seen = _Seen()
        for members in batches:
            group = self._group(members, moved)
            output = await client.forward_backward(group, self._loss)
            seen.add(output)
            seen.tell(members, group, self._kinds, output)
        return StepFigures(seen.loss / seen.weight, seen.tokens, seen.figures())

    async def evaluate(self, client: TrainingClient) -> Mapping[str, float]:
        await self._compare_with(client, 0)
        members = np.arange(self._windows.count, self._answers // 2)
        if not len(members):
            return {}
        moved = await self._moved(client, members)
        seen = _Seen()
        group = self._group(members, moved)
        output = await client.forward(group, self._loss)
        seen.add(output)
        seen.tell(members, group, self._kinds, output)
        if self._takes == "rejected":
            chosen = [self._given[2 * member] for member in members]
            seen.tell(members, chosen, ("chosen",), await client.forward(chosen))
        return {"loss": seen.loss / seen.weight, **seen.figures()}

    def state_dict(self) -> dict[str, Any]:
        known = self._referenced
        return {"references": None if known is None else references.written(known)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        text = state["references"]
        self._referenced = None if text is None else references.read(text, self._datums)

    @property
    def _given(self) -> list[Datum]:
        """The datums with their references: chosen and rejected in turn, then exchanged ones."""
        if self._referenced is None:
            raise TrainingError("The references have not been computed.")
        return self._referenced

    async def _compare_with(self, client: TrainingClient, number: int) -> None:
        if self._referenced is None:
            if number:
                raise TrainingError(
                    f"Step {number + 1} has no reference: the model has been trained already.",
                    hint="Begin with step 1, or go on from a checkpoint.",
                )
            self._referenced = await references.referenced(client, self._datums)

    def _group(self, members: NDArray[np.int64], moved: float) -> list[Datum]:
        """What the loss takes of some pairs."""
        given = self._given
        if self._takes == "pairs":
            return [
                each
                for member in members
                for each in Pair(given[2 * member], given[2 * member + 1]).datums
            ]
        if self._takes == "rejected":
            return [given[2 * member + 1] for member in members]
        return [
            _adding(given[2 * member + place], desirable=1.0 - place, kl=moved)
            for member in members
            for place in (0, 1)
        ]

    async def _moved(self, client: TrainingClient, members: NDArray[np.int64]) -> float:
        """z of KTO: `losses.preference.kl_baseline` of answers to other prompts."""
        if len(self._datums) == self._answers:
            return 0.0
        exchanged = [self._given[self._answers + member] for member in members]
        ratios = _ratios(exchanged, (await client.forward(exchanged)).logprobs)
        return max(0.0, float(np.mean([each.sum() for each in ratios])))


@dataclass(slots=True)
class _Seen:
    """What came out of a window."""

    loss: float = 0.0
    weight: float = 0.0
    tokens: int = 0
    rewards: dict[str, dict[int, float]] = field(
        default_factory=lambda: {"chosen": {}, "rejected": {}}
    )
    likely: dict[str, dict[int, float]] = field(
        default_factory=lambda: {"chosen": {}, "rejected": {}}
    )
    squares: list[NDArray[np.float64]] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)

    def add(self, output: ForwardBackwardOutput) -> None:
        """A pass of the loss."""
        self.loss, self.weight = self.loss + output.loss, self.weight + output.weight
        self.tokens += output.tokens
        for name, value in output.metrics.items():
            self.parts[name] = self.parts.get(name, 0.0) + value * output.weight

    def tell(
        self,
        members: NDArray[np.int64],
        group: Sequence[Datum],
        kinds: Sequence[str],
        output: ForwardBackwardOutput,
    ) -> None:
        """What became of the answers of some pairs, one of each kind."""
        ratios = _ratios(group, output.logprobs)
        for place, (each, logprobs) in enumerate(zip(ratios, output.logprobs, strict=True)):
            kind, member = kinds[place % len(kinds)], int(members[place // len(kinds)])
            self.rewards[kind][member] = float(each.sum())
            self.likely[kind][member] = float(logprobs.sum(dtype=np.float64))
            self.squares.append(each**2 / 2)

    def figures(self) -> dict[str, float]:
        """All that is measured."""
        # A loss's own margin is in units of its own (IPO's is per token).
        told = {name: total / self.weight for name, total in self.parts.items()}
        chosen, rejected = (self.rewards[kind] for kind in ("chosen", "rejected"))
        for kind, rewards in self.rewards.items():
            if rewards:
                told[f"reward_{kind}"] = float(np.mean(list(rewards.values())))
        if chosen and rejected:
            margins = np.array([chosen[member] - rejected[member] for member in chosen])
            likely = self.likely
            told["margin"] = float(margins.mean())
            told["accuracy"] = float((margins > 0).mean())
            told["likelier"] = float(
                np.mean([likely["chosen"][m] > likely["rejected"][m] for m in likely["chosen"]])
            )
        told["kl"] = float(np.concatenate(self.squares).mean())
        return told


def _takes(loss: str) -> Takes:
    made = losses.get(loss)
    if made.members == 2:
        return "pairs"
    if "desirable" in made.needs:
        return "both"
    if name_of(loss) == "npo":
        return "rejected"
    raise TrainingError(
        f"{loss} is no loss of preferences.",
        hint="There are dpo (variant=ipo, supervised=...), kto and npo, and mixtures with dpo.",
    )


def _members(pair: Pair) -> tuple[Datum, Datum]:
    """Both weighing what the pair weighs."""
    return pair.chosen, reweighted(pair.rejected, datum_weight(pair.chosen))


def _ratios(
    datums: Sequence[Datum], logprobs: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float64]]:
    """log p - log p_ref at the weighted positions of each."""
    found = []
    for each, values in zip(datums, logprobs, strict=True):
        inputs = each.loss_fn_inputs
        gap = values.astype(np.float64) - inputs["reference"].data
        found.append(gap[inputs["weights"].data != 0])
    return found


def _exchanged(chosen: Sequence[Datum]) -> list[Datum]:
    """Each prompt with the answer to the next other one; with its own, where there is no other."""
    prompts, answers = [], []
    for each in chosen:
        weights = each.loss_fn_inputs["weights"].data
        first = int(np.flatnonzero(weights)[0])
        prompts.append(each.model_input.tokens[: first + 1])
        answers.append((each.loss_fn_inputs["target_tokens"].data[first:], weights[first:]))
    found = []
    for index, prompt in enumerate(prompts):
        later = ((index + step) % len(prompts) for step in range(1, len(prompts)))
        other = next((place for place in later if prompts[place] != prompt), index)
        tokens, weights = answers[other]
        before = [0.0] * len(prompt)
        found.append(from_tokens([*prompt, *map(int, tokens)], [*before, *map(float, weights)]))
    return found


def _adding(datum: Datum, **values: float) -> Datum:
    more = {name: TensorData(np.asarray(each, dtype=np.float32)) for name, each in values.items()}
    return replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, **more})
