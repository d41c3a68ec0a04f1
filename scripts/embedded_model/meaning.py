"""What questions mean, learned beside the answers: likewise worded questions stand together.

At the end of a question, some layers below the answer, the model is trained to say what a sentence
encoder says (as in https://arxiv.org/abs/2004.09813, there from one language to another). The
projection that this needs is thrown away afterwards. Knows the texts and vectors, not the encoder.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import nn

from embedded_model.encoding import Encoder
from embedded_model.noise import typed
from embedded_model.teacher import Bank

DEPTH = 4
"""After so many layers the meaning is read; those above turn it into the answer."""
BATCH = 96
"""Texts a step."""


class Meaning(nn.Module):
    """The lower layers of a model, and the projection from their states to the teacher's.

    Args:
        model: the causal model that is trained; its layers are shared, not copied.
        bank: what to learn.
    """

    def __init__(self, model: Any, bank: Bank, encoder: Encoder, seed: int) -> None:
        super().__init__()
        self._bank, self._encoder, self._seed = bank, encoder, seed
        self._trunk = _lower_layers(model.model, DEPTH)
        width = bank.vectors.shape[1]
        self.projection = nn.Linear(model.config.hidden_size, width, bias=False)

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """Those that are not the model's."""
        return {
            "meaning.norm": self._trunk.norm.weight,
            "meaning.projection": self.projection.weight,
        }

    def loss(self, step: int) -> torch.Tensor:
        """One minus the cosine between what the model and the teacher say of a batch of texts."""
        rng = random.Random(f"{self._seed}/meaning/{step}")
        chosen = [rng.randrange(len(self._bank.texts)) for _ in range(BATCH)]
        prompts = [
            self._encoder.prompt((("user", typed(self._bank.texts[at], rng)),)) for at in chosen
        ]
        # Padding stands on the right, where a causal model does not see it.
        ids = nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], True)
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts])
        hidden = self._trunk(input_ids=ids, use_cache=False).last_hidden_state
        said = self.projection(hidden[torch.arange(BATCH), ends]).float()
        wanted = self._bank.vectors[chosen].float()
        return 1.0 - nn.functional.cosine_similarity(said, wanted).mean()


def _lower_layers(body: Any, depth: int) -> Any:
    """A model of the first `depth` layers: embeddings and layers shared, a norm of its own."""
    config = copy.deepcopy(body.config)
    config.num_hidden_layers = depth
    config.layer_types = config.layer_types[:depth]
    trunk = type(body)(config)
    trunk.embed_tokens = body.embed_tokens
    trunk.layers = body.layers[:depth]
    return trunk
