"""How lessons stand while they are taught: which are learned, what was right before and is lost,
and whether going on brings anything.

Knows examples and a client to ask, no optimiser and no batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shammah.ports.datum import Datum
from shammah.ports.training_client import TrainingClient
from shammah.training.examples import Example

LOOK_EVERY = 3
"""Steps between two looks at what was lost, once all is learned."""

RECOVERY = 12
"""Steps without anything more right that it goes on for, once all is learned, where something is
lost that is easily lost."""

SAVED = (
    "loss", "learned", "right_before", "lost", "dear", "looked_step", "most_learned",
    "progress_step",
)  # fmt: skip


@dataclass(slots=True)
class Standing:
    """What is known of the lessons after a step.

    Args:
        lessons, weights: what is taught, and how much each counts in the loss.
        kept: what must not be lost. delicate: so many of the last of these are easily lost.
        patience: steps without anything new; 0 has any number.
    """

    lessons: Sequence[Example]
    weights: Sequence[float]
    kept: Sequence[Datum]
    delicate: int
    patience: int
    loss: float = 0.0
    """Nats per token, as last seen."""
    learned: list[bool] = field(default_factory=list)
    right_before: list[bool] = field(default_factory=list)
    """Of what is kept."""
    lost: int = 0
    """Of these, at the last look."""
    dear: int = 0
    """Of those lost, the ones that are not delicate."""
    looked_step: int = 0
    most_learned: int = 0
    progress_step: int = 0
    """The step after which more was right than ever before."""

    def __post_init__(self) -> None:
        self.learned = [False] * len(self.lessons)

    @property
    def all_learned(self) -> bool:
        return all(self.learned)

    def see(self, index: int, greedy: bool) -> None:
        """Whether greedy decoding gives the answer of a lesson."""
        self.learned[index] = self.lessons[index].learned(greedy)

    async def begin(self, client: TrainingClient) -> None:
        """Look at what is right before anything is taught, unless that is known."""
        if self.kept and not self.right_before:
            self.right_before = list((await client.forward(self.kept)).greedy)

    async def look(self, client: TrainingClient, step: int) -> None:
        """Look at every lesson, and at what is kept, with the weights as they are."""
        shares = np.asarray(self.weights) / np.mean(self.weights)
        loss = weight = 0.0
        by_loss: dict[str, list[int]] = {}
        for index, lesson in enumerate(self.lessons):
            by_loss.setdefault(lesson.terms[0].loss, []).append(index)
        for loss_fn, indices in by_loss.items():
            terms = [self.lessons[index].terms[0] for index in indices]
            output = await client.forward(
                [
                    datum
                    for index, term in zip(indices, terms, strict=True)
                    for datum in term.weighing(float(shares[index]))
                ],
                loss_fn,
            )
            # Other losses are on another scale; they tell of the loss where there is nothing else.
            if loss_fn == "cross_entropy" or "cross_entropy" not in by_loss:
                loss, weight = loss + output.loss, weight + output.weight
            firsts = np.cumsum([0, *(len(term.datums) for term in terms[:-1])])
            for index, first in zip(indices, firsts.tolist(), strict=True):
                self.see(index, output.greedy[first])
        await self.look_at_kept(client, step)
        self.loss = loss / weight

    async def look_at_kept(self, client: TrainingClient, step: int) -> None:
        """Look at what was right before."""
        if any(self.right_before):
            found = (await client.forward(self.kept)).greedy
            pairs = zip(self.right_before, found, strict=True)
            gone = [before and not now for before, now in pairs]
            self.lost, self.dear = sum(gone), sum(gone[: len(gone) - self.delicate])
            self.looked_step = step

    def due(self, step: int) -> bool:
        """Whether all is learned and it is time to look at everything again: at once, or a while
        after a look that found something lost."""
        return self.all_learned and (not self.lost or step - self.looked_step >= LOOK_EVERY)

    def note_progress(self, step: int) -> None:
        """What is lost is looked at only while all is learned; before that it counts as lost."""
        kept = sum(self.right_before) - self.lost if self.all_learned else 0
        if sum(self.learned) + kept > self.most_learned:
            self.most_learned, self.progress_step = sum(self.learned) + kept, step

    async def ends(self, client: TrainingClient, step: int) -> bool:
        """Whether going on would only wear out what is there: nothing new is learned any more, and
        what was lost does not come back. Where an earlier lesson is lost that may come back, it
        goes on for as long again at most."""
        patience = self.patience
        if self.all_learned:
            patience = 2 * patience if self.dear else min(patience, RECOVERY)
        waited = step - self.progress_step
        if not 0 < patience <= waited:
            return False
        if self.all_learned or waited >= 2 * self.patience:
            return True
        if step - self.looked_step >= LOOK_EVERY:
            await self.look_at_kept(client, step)
        return self.dear == 0

    def state_dict(self) -> dict[str, Any]:
        """What is known, as plain JSON values."""
        return {name: getattr(self, name) for name in SAVED}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in SAVED:
            value = state[name]
            setattr(self, name, list(value) if isinstance(value, list) else value)
