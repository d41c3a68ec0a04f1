"""From token ids to the log-probabilities of targets, through a causal LM with an adapter.

The fast way lays several examples into one row (`attention`), runs the model without its output
head, and computes logits only where there is a target (`head`). Models that it would not be exact
for (attention of another kind, logits that are transformed after the head) go one example at a
time through their own forward pass. Which way a model goes is found out by trying it. Knows
nothing about losses or optimisers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shammah.errors import EmptyLessonError
from shammah.ports.training_client import Datum
from shammah.training import attention
from shammah.training.head import dense_logprobs, target_logprobs
from shammah.training.packing import bucket


@dataclass(frozen=True, slots=True)
class Targets:
    """What came out at the weighted positions of a list of examples, one after the other.

    `logprobs` float32[n], `greedy` bool[n], `weights` float32[n]; `positions[i]` are the weighted
    positions of example i, and `sizes[i]` their number.
    """

    logprobs: torch.Tensor
    greedy: torch.Tensor
    weights: torch.Tensor
    positions: tuple[np.ndarray[Any, np.dtype[np.int64]], ...]

    @property
    def sizes(self) -> list[int]:
        return [len(positions) for positions in self.positions]


class Body:
    """A model as the trainer runs it. `packed` says whether examples share a row, `headless`
    whether the output head is applied to chosen positions only."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self._original = model.config._attn_implementation
        attention.register()
        self.headless = self._headless()
        self.packed = self.headless and self._packs()

    def targets(self, examples: Sequence[Datum]) -> Targets:
        """Run examples through the model; with gradients where they are enabled.

        Raises:
            EmptyLessonError: an example has no weight above zero.
        """
        positions, ids, weights = [], [], []
        for example in examples:
            row = example.loss_fn_inputs["weights"].data
            if len(row) != len(example.model_input):
                raise ValueError(f"{len(example.model_input)} tokens but {len(row)} weights")
            positions.append(np.flatnonzero(row))
            if not len(positions[-1]):
                raise EmptyLessonError("A training example has no token with a weight above zero.")
            ids.append(example.loss_fn_inputs["target_tokens"].data[positions[-1]])
            weights.append(row[positions[-1]])
        target_ids = torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(self.device)
        if self.packed:
            logprobs, greedy = self._together(examples, positions, target_ids)
        else:
            logprobs, greedy = self._one_by_one(examples, positions, target_ids)
        return Targets(
            logprobs,
            greedy,
            torch.from_numpy(np.concatenate(weights).astype(np.float32)).to(self.device),
            tuple(positions),
        )

    @contextmanager
    def own_attention(self) -> Iterator[None]:
        """Within it the model uses the attention it came with (with a KV cache, for sampling)."""
        self.model.set_attn_implementation(self._original)
        try:
            yield
        finally:
            if self.packed:
                self.model.set_attn_implementation(attention.NAME)

    def close(self) -> None:
        """Give the model its own attention back."""
        self.model.set_attn_implementation(self._original)

    def _together(
        self, examples: Sequence[Datum], positions: Sequence[Any], targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [example.model_input.tokens for example in examples]
        hidden, _ = self._hidden(rows)
        starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
        chosen = np.concatenate(
            [where + start for where, start in zip(positions, starts, strict=True)]
        )
        return self._head(hidden[torch.from_numpy(chosen).to(self.device)], targets)

    def _one_by_one(
        self, examples: Sequence[Datum], positions: Sequence[Any], targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        results, start = [], 0
        for example, where in zip(examples, positions, strict=True):
            part = targets[start : start + len(where)]
            start += len(where)
            ids = torch.tensor([example.model_input.tokens], device=self.device)
            chosen = torch.from_numpy(where).to(self.device)
            if self.headless:
                hidden = self.model.base_model(input_ids=ids, use_cache=False)[0][0, chosen]
                results.append(self._head(hidden, part))
            else:
                logits = self.model(input_ids=ids, use_cache=False).logits[0, chosen]
                results.append(dense_logprobs(logits, part))
        return torch.cat([pair[0] for pair in results]), torch.cat([pair[1] for pair in results])

    def _hidden(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, attention.Calls]:
        """Final hidden states [T, H] of rows laid one after the other, and what attention was
        asked for."""
        tokens = [token for row in rows for token in row]
        places = [place for row in rows for place in range(len(row))]
        if self.device.type == "cpu":
            idle = bucket(len(tokens)) - len(tokens)
            tokens, places = tokens + [0] * idle, places + [0] * idle
        ends = np.cumsum([len(row) for row in rows]).tolist()
        spans = [(end - len(row), end) for row, end in zip(rows, ends, strict=True)]
        with attention.segments(spans) as calls:
            hidden: torch.Tensor = self.model.base_model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([places], device=self.device),
                use_cache=False,
            )[0]
        return hidden[0, : ends[-1]], calls

    def _head(
        self, hidden: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = self.model.get_output_embeddings()
        return target_logprobs(hidden, head.weight, getattr(head, "bias", None), targets)

    @torch.no_grad()
    def _headless(self) -> bool:
        """Whether the model's logits are its output head applied to its final hidden states."""
        head = self.model.get_output_embeddings()
        if not isinstance(head, torch.nn.Linear):
            return False
        ids = self._probe(7)
        logits = self.model(input_ids=ids, use_cache=False).logits
        hidden = self.model.base_model(input_ids=ids, use_cache=False)[0]
        return hidden.shape[-1] == head.in_features and _close(head(hidden), logits)

    @torch.no_grad()
    def _packs(self) -> bool:
        """Whether two examples in one row come out as they do alone."""
        config = self.model.config
        kinds = getattr(config, "layer_types", None)
        if set(kinds or ()) - {"full_attention", "sliding_attention"}:
            return False
        if getattr(config, "attention_chunk_size", None) is not None:
            return False
        ids = self._probe(9)[0].tolist()
        rows = [ids[:5], ids[5:]]
        alone = [
            self.model.base_model(
                input_ids=torch.tensor([row], device=self.device), use_cache=False
            )[0][0]
            for row in rows
        ]
        try:
            self.model.set_attn_implementation(attention.NAME)
            together, calls = self._hidden(rows)
        except (attention.UnsupportedAttentionError, ValueError, TypeError, RuntimeError):
            self.model.set_attn_implementation(self._original)
            return False
        windows = [window for window in calls.windows if window is not None]
        if kinds is not None:
            sliding = sum(kind == "sliding_attention" for kind in kinds)
        else:
            sliding = len(calls.windows) if getattr(config, "sliding_window", None) else 0
        right = (
            len(calls.windows) == config.num_hidden_layers
            and len(windows) == sliding
            and _close(together, torch.cat(alone))
        )
        if not right:
            self.model.set_attn_implementation(self._original)
        return right

    def _probe(self, length: int) -> torch.Tensor:
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = [(37 * (place + 1) + 11) % vocabulary for place in range(length)]
        return torch.tensor([ids], device=self.device)


def _close(left: torch.Tensor, right: torch.Tensor) -> bool:
    tolerance = 1e-3 if left.dtype == torch.float32 else 5e-2
    size = right.float().abs().max().clamp(min=1e-6)
    return bool((left - right).float().abs().max() / size < tolerance)
