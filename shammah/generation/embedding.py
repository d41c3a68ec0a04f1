"""Questions as vectors, from the hidden states of the model that answers them.

A question is rendered as it would be asked; the state at the end of that prompt, three quarters of
the way up, is where the model has read it all and does not yet word its answer. All states share a
large part, which is taken off: the mean over questions of all sorts. On the embedded model that
finds the question that means the same as often as a sentence encoder of four times its size does
(`scripts/bench/routing.py`). Knows texts and vectors, nothing of adapters.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shammah.errors import EmbeddingError, ShammahError
from shammah.generation.lora import without_adapter
from shammah.messages import user
from shammah.models.anchors import read_anchors
from shammah.models.load import BaseModel
from shammah.models.shape import decoder_layers
from shammah.models.source import EMBEDDED
from shammah.ports.embedding_client import unit_rows
from shammah.renderers.base import Renderer

DEPTH = 0.75
"""Share of the layers that are read."""
CENTRE = 32
"""Questions that the shared part is the mean of; 16 and 320 give the same."""
BATCH = 32
"""Texts read at once."""
LONGEST = 512
"""Tokens of a text at most; the last ones count."""


class HiddenStateEmbedder:
    """An `EmbeddingClient` on a loaded base model.

    It reads the model's weights through layers of its own and on a thread of its own: no adapter
    changes what it gives, it may work while an answer is decoded, and the prefix cache is not
    touched.

    Args:
        base: the model.
        renderer: how it is spoken to.
        depth: share of the layers that are read, above 0, at most 1.
    """

    def __init__(self, base: BaseModel, renderer: Renderer, *, depth: float = DEPTH) -> None:
        self._base = base
        self._renderer = renderer
        self._body, layers = _lower_layers(base.model, depth)
        dtype = str(base.dtype).removeprefix("torch.")
        self._name = f"hidden states {base.fingerprint[:16]} layer {layers} {dtype}"
        self._centre: NDArray[np.float32] | None = None
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(
            1, "shammah-embed", partial(torch.set_num_threads, base.threads)
        )

    @property
    def name(self) -> str:
        return self._name

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The port's `embed`; each text as a question of its own."""
        import asyncio

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.vectors, tuple(texts))

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`embed` in the calling thread."""
        try:
            with self._lock:
                if self._centre is None:
                    self._centre = self._states(_questions(self._base)).mean(axis=0)
                if not texts:
                    return np.zeros((0, len(self._centre)), np.float32)
                return unit_rows(self._states(texts) - self._centre, backend=self._name)
        except ShammahError:
            raise
        except Exception as error:
            raise EmbeddingError(
                f"{type(error).__name__}: {error}",
                backend=self._name,
                hint="The log has the details.",
            ) from error

    @torch.inference_mode()
    def _states(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Hidden states [n, d]. Batches hold texts of about the same length."""
        limit = min(LONGEST, self._base.context_length)
        prompts = [self._renderer.generation_prompt((user(text),))[-limit:] for text in texts]
        order = iter(sorted(range(len(prompts)), key=lambda index: len(prompts[index])))
        found: list[NDArray[np.float32] | None] = [None] * len(prompts)
        while batch := list(islice(order, BATCH)):
            for index, state in zip(batch, self._read([prompts[i] for i in batch]), strict=True):
                found[index] = state
        return np.stack([state for state in found if state is not None])

    def _read(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        # Padding stands on the right, where a causal model does not see it.
        rows = [torch.tensor(prompt) for prompt in prompts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._base.device)
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self._base.device)
        hidden = self._body(input_ids=ids, use_cache=False).last_hidden_state
        states: NDArray[np.float32] = hidden[torch.arange(len(rows)), ends].float().cpu().numpy()
        return states


def _questions(base: BaseModel) -> list[str]:
    """Questions of all sorts: the model's own anchors, or those of the embedded model."""
    anchors = read_anchors(base.path) or read_anchors(EMBEDDED)
    return [anchor.query for anchor in anchors[:: max(1, len(anchors) // CENTRE)][:CENTRE]]


def _lower_layers(model: Any, depth: float) -> tuple[Any, int]:
    """The model's body as far as a share of its layers, with the weights it has, and how many
    layers that are. A body whose layers are in no list of their own is read whole."""
    body = without_adapter(model.base_model)
    stack = decoder_layers(body)
    if stack is None:
        return body, int(model.config.get_text_config(decoder=True).num_hidden_layers)
    kept = math.ceil(len(stack.layers) * depth)
    stack.replace(stack.layers[:kept])
    body.config = copy.deepcopy(body.config)
    body.config.get_text_config(decoder=True).num_hidden_layers = kept
    return body, kept
