"""From token ids to the log-probabilities of targets, through a causal LM with an adapter.

The fast way lays several examples into one row (`attention`), runs the model without its output
head, and computes logits only where there is a target (`head`). Models that it would not be exact
for (attention of another kind, logits that are transformed after the head) go one example at a
time through their own forward pass. Which way a model goes is found out by trying it. Knows
nothing about losses or optimisers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from shammah.errors import EmptyLessonError, TrainingError
from shammah.ports.datum import Datum, TensorData
from shammah.training import attention
from shammah.training.head import dense_logprobs, shared_logprobs, target_logprobs
from shammah.training.packing import bucket, pack
from shammah.training.trunk import Trunk

LOGITS_BYTES = 64 << 20
"""Size of the logits of what is looked at together, in float32."""
REMEMBERED_TOKENS = 1024
"""How many are computed at once for what is remembered."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What came out at the weighted positions of a list of examples, one after the other.

    `logprobs` float32[n], `greedy` bool[n], `weights` float32[n]; `places[i]` are the indices of
    example i's weighted targets in its flattened `target_tokens`. `others` float32[m] are the
    log-probabilities of what was asked for beside the targets.
    """

    logprobs: torch.Tensor
    greedy: torch.Tensor
    weights: torch.Tensor
    places: tuple[np.ndarray[Any, np.dtype[np.int64]], ...]
    others: torch.Tensor | None = None


Pairs: TypeAlias = tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]
"""Positions of an example, and a token for each."""
Found: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Log-probabilities, and whether each is of the most likely token."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Tokens at positions of each example, one example's after the other's."""

    positions: Sequence[Any]
    tokens: torch.Tensor
    shares: bool


class Body:
    """A model as the trainer runs it. `packed` says whether examples share a row, `headless`
    whether the output head is applied to chosen positions only."""

    def __init__(self, model: Any, adapted: Iterable[str] = ()) -> None:
        """
        Args:
            model: a transformers causal LM.
            adapted: paths of its modules with an adapter; without them nothing is remembered.
        """
        self.model = model
        self._trunk: Trunk | None = None
        self.device = next(model.parameters()).device
        self._original = model.config._attn_implementation
        attention.register()
        self.headless = self._headless()
        self.packed = self.headless and self._packs()
        if self.packed:
            self._trunk = self._divided(Trunk(model, adapted))

    def targets(
        self,
        examples: Sequence[Datum],
        others: Sequence[Pairs] | None = None,
        *,
        shares: bool = False,
    ) -> Targets:
        """Run examples through the model; with gradients where they are enabled.

        Args:
            others: positions and tokens of each example whose log-probabilities are wanted beside
                those of its targets.
            shares: whether a position may have very many targets, as of a whole distribution.

        Raises:
            EmptyLessonError: an example has no weight above zero.
        """
        places, positions, ids, weights = [], [], [], []
        for example in examples:
            row = weights_of(example)
            places.append(np.flatnonzero(row))
            if not len(places[-1]):
                raise EmptyLessonError("A training example has no token with a weight above zero.")
            positions.append(places[-1] // (row.shape[1] if row.ndim == 2 else 1))
            ids.append(example.loss_fn_inputs["target_tokens"].data.reshape(-1)[places[-1]])
            weights.append(row.reshape(-1)[places[-1]])
        target_ids = torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(self.device)
        asked = [_Asked(positions, target_ids, shares)]
        if others is not None:
            tokens = np.concatenate([pair[1] for pair in others])
            where = [pair[0] for pair in others]
            asked.append(_Asked(where, torch.from_numpy(tokens).to(self.device), True))
        if self.packed:
            (logprobs, greedy), *more = self._together(examples, asked)
        else:
            (logprobs, greedy), *more = self._one_by_one(examples, asked)
        return Targets(
            logprobs,
            greedy,
            torch.from_numpy(np.concatenate(weights).astype(np.float32)).to(self.device),
            tuple(places),
            more[0][0] if more else None,
        )

    def read(
        self, examples: Sequence[Datum], positions: Sequence[Any], told: Sequence[Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of one pass over the examples: what it made of some tokens, and how likely it found some.

        Args:
            positions: of each example, those whose hidden states are wanted.
            told: of each example, those whose tokens' log-probabilities are wanted, each given the
                tokens before it; none is 0, which nothing comes before.

        Returns:
            Final hidden states [n, H] and log-probabilities float32[m], one example after the
            other; with gradients where they are enabled.
        """
        rows = [example.model_input.tokens for example in examples]
        if self.packed:
            states = torch.split(self._hidden(rows)[0], [len(row) for row in rows])
            logits: tuple[torch.Tensor, ...] = ()
        else:
            states, logits = zip(*(self._alone(row) for row in rows), strict=True)
        ids = [row[place] for row, where in zip(rows, told, strict=True) for place in where]
        hidden = self._at(positions, states)
        if not ids:
            return hidden, torch.zeros(0, device=self.device)
        targets = torch.tensor(ids, device=self.device)
        before = [where - 1 for where in told]
        if self.headless:
            near = self._at(before, states)
            return hidden, self._head(near, np.arange(len(ids)), targets, False)[0]
        return hidden, dense_logprobs(self._at(before, logits), targets)[0]

    def remember(self, examples: Iterable[Datum]) -> None:
        """Compute what the layers below the adapter say about these examples, once: passes over
        them begin above those layers from now on. Where the model cannot be divided so, or there is
        no such layer, nothing happens."""
        if self._trunk is None:
            return
        rows = list(dict.fromkeys(example.model_input.tokens for example in examples))
        for members in pack([len(row) for row in rows], REMEMBERED_TOKENS):
            group = [rows[index] for index in members]
            self._trunk.keep(group, self._below(self._trunk, group))

    @torch.no_grad()
    def likeliest(self, examples: Sequence[Datum], count: int) -> list[Datum]:
        """The same examples with the model's own distribution as what is to be matched.

        At each weighted position the `count` likeliest tokens become targets; their probabilities,
        brought to a sum of one, share that position's weight. Cross-entropy to them is the KL
        divergence from the model as it is now, up to a constant (and to the rest of the tokens).
        """
        held: dict[int, Datum] = {}
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        at_once = max(64, LOGITS_BYTES // (4 * vocabulary))
        for members in pack([len(example.model_input) for example in examples], at_once):
            group = [examples[index] for index in members]
            where = [np.flatnonzero(e.loss_fn_inputs["weights"].data) for e in group]
            # A softmax over the likeliest alone gives their probabilities, brought to a sum of one.
            highest, tokens = self._logits(group, where).topk(count, -1)
            shares = torch.softmax(highest.float(), -1)
            sizes = [len(places) for places in where]
            parts = zip(torch.split(shares, sizes), torch.split(tokens, sizes), strict=True)
            for index, places, (share, token) in zip(members, where, parts, strict=True):
                held[index] = _matching(examples[index], places, token, share)
        return [held[index] for index in range(len(examples))]

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

    def _together(self, examples: Sequence[Datum], asked: Sequence[_Asked]) -> list[Found]:
        rows = [example.model_input.tokens for example in examples]
        hidden, _ = self._hidden(rows)
        starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
        return [
            self._head(
                hidden,
                np.concatenate(
                    [where + start for where, start in zip(each.positions, starts, strict=True)]
                ),
                each.tokens,
                each.shares,
            )
            for each in asked
        ]

    def _logits(self, examples: Sequence[Datum], positions: Sequence[Any]) -> torch.Tensor:
        """Logits [n, V] at the positions of the examples, one example after the other."""
        if self.packed:
            picked, _ = self.read(examples, positions, [np.zeros(0, np.int64)] * len(examples))
            logits: torch.Tensor = self.model.get_output_embeddings()(picked)
            return logits
        rows = [example.model_input.tokens for example in examples]
        chosen = [torch.from_numpy(where).to(self.device) for where in positions]
        alone = [torch.tensor([row], device=self.device) for row in rows]
        return torch.cat(
            [
                self.model(input_ids=ids, use_cache=False).logits[0, where]
                for ids, where in zip(alone, chosen, strict=True)
            ]
        )

    def _one_by_one(self, examples: Sequence[Datum], asked: Sequence[_Asked]) -> list[Found]:
        results: list[list[Found]] = [[] for _ in asked]
        starts = [0] * len(asked)
        for number, example in enumerate(examples):
            ids = torch.tensor([example.model_input.tokens], device=self.device)
            run = self.model.base_model if self.headless else self.model
            output = run(input_ids=ids, use_cache=False)
            states = output[0][0] if self.headless else output.logits[0]
            for index, each in enumerate(asked):
                where, start = each.positions[number], starts[index]
                starts[index] += len(where)
                part = each.tokens[start : starts[index]]
                if self.headless:
                    found = self._head(states, where, part, each.shares)
                else:
                    chosen = torch.from_numpy(where).to(self.device)
                    found = dense_logprobs(states[chosen], part)
                results[index].append(found)
        return [
            (torch.cat([pair[0] for pair in found]), torch.cat([pair[1] for pair in found]))
            for found in results
        ]

    def _alone(self, row: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Final hidden states [T, H] of a row by itself; and its logits [T, V], or nothing [0]
        where they are those of the output head alone."""
        ids = torch.tensor([row], device=self.device)
        if self.headless:
            states: torch.Tensor = self.model.base_model(input_ids=ids, use_cache=False)[0][0]
            return states, states.new_zeros(0)
        kept: list[torch.Tensor] = []
        hook = self.model.base_model.register_forward_hook(
            lambda module, given, output: kept.append(output[0][0])
        )
        try:
            logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        finally:
            hook.remove()
        return kept[0], logits

    def _at(self, positions: Sequence[Any], rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """What rows hold at their positions, one row after the other."""
        chosen = [torch.from_numpy(where).to(self.device) for where in positions]
        return torch.cat([row[where] for row, where in zip(rows, chosen, strict=True)])

    def _hidden(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, attention.Calls]:
        """Final hidden states [T, H] of rows laid one after the other, and what attention was
        asked for."""
        length = sum(len(row) for row in rows)
        with self._laid_out(rows) as (inputs, calls):
            if self._trunk is not None and self._trunk.knows(rows):
                states = self._trunk.states(rows)
                idle = inputs["input_ids"].shape[1] - length
                hidden = self._trunk.above(F.pad(states, (0, 0, 0, idle))[None], **inputs)
            else:
                hidden = self.model.base_model(**inputs)[0]
        return hidden[0, :length], calls

    def _below(self, trunk: Trunk, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Hidden states [T, H] behind the frozen lower layers, of rows one after the other."""
        with self._laid_out(rows) as (inputs, _):
            return trunk.below(**inputs)[0, : sum(len(row) for row in rows)]

    @contextmanager
    def _laid_out(
        self, rows: Sequence[Sequence[int]]
    ) -> Iterator[tuple[dict[str, Any], attention.Calls]]:
        """What a model is given to read rows one after the other, each seeing only itself."""
        tokens = [token for row in rows for token in row]
        places = [place for row in rows for place in range(len(row))]
        if self.device.type == "cpu":
            idle = bucket(len(tokens)) - len(tokens)
            tokens, places = tokens + [0] * idle, places + [0] * idle
        ends = np.cumsum([len(row) for row in rows]).tolist()
        spans = [(end - len(row), end) for row, end in zip(rows, ends, strict=True)]
        with attention.segments(spans) as calls:
            inputs = {
                "input_ids": torch.tensor([tokens], device=self.device),
                "position_ids": torch.tensor([places], device=self.device),
                "use_cache": False,
            }
            yield inputs, calls

    def _head(
        self, hidden: torch.Tensor, positions: Any, targets: torch.Tensor, shares: bool
    ) -> Found:
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        # Of several targets at one position the logits are made once.
        places, of_target = np.unique(positions, return_inverse=True)
        chosen = hidden[torch.from_numpy(places).to(self.device)]
        rows = torch.from_numpy(of_target).to(self.device)
        if shares:
            return shared_logprobs(chosen, head.weight, bias, rows, targets)
        return target_logprobs(chosen, head.weight, bias, targets, rows)

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

    @torch.no_grad()
    def _divided(self, trunk: Trunk) -> Trunk | None:
        """The trunk, where the model gives the same in two parts as in one."""
        if trunk.depth == 0:
            return None
        rows = [self._probe(9)[0].tolist()]
        whole, _ = self._hidden(rows)
        try:
            with self._laid_out(rows) as (inputs, _):
                parts = trunk.above(trunk.below(**inputs), **inputs)[0, : len(rows[0])]
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError):
            return None
        return trunk if _close(parts, whole) else None

    def _probe(self, length: int) -> torch.Tensor:
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = [(37 * (place + 1) + 11) % vocabulary for place in range(length)]
        return torch.tensor([ids], device=self.device)


def base_distributions(model: Any, examples: Sequence[Datum], count: int) -> list[Datum]:
    """`Body.likeliest` for a model that is not being trained yet."""
    body = Body(model)
    try:
        return body.likeliest(examples, count)
    finally:
        body.close()


def weights_of(example: Datum) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Those of an example, or one for each target."""
    if "target_tokens" not in example.loss_fn_inputs:
        raise TrainingError("A training example has no target_tokens.")
    if "weights" in example.loss_fn_inputs:
        return example.loss_fn_inputs["weights"].data.astype(np.float32, copy=False)
    return np.ones(example.loss_fn_inputs["target_tokens"].shape, dtype=np.float32)


def _matching(example: Datum, places: Any, tokens: torch.Tensor, shares: torch.Tensor) -> Datum:
    """An example with several targets [n, K] at each of its weighted places."""
    weights = example.loss_fn_inputs["weights"].data
    size = (len(weights), tokens.shape[1])
    targets, parts = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.float32)
    targets[places] = tokens.cpu().numpy()
    parts[places] = shares.cpu().numpy() * weights[places, None]
    return replace(
        example,
        loss_fn_inputs={"target_tokens": TensorData(targets), "weights": TensorData(parts)},
    )


def _close(left: torch.Tensor, right: torch.Tensor) -> bool:
    tolerance = 1e-3 if left.dtype == torch.float32 else 5e-2
    size = right.float().abs().max().clamp(min=1e-6)
    return bool((left - right).float().abs().max() / size < tolerance)
