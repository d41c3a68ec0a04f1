"""Losses as functions of log-probabilities, by name or as functions.

| name | of | needs beside targets and weights |
| --- | --- | --- |
| `cross_entropy` | tokens | |
| `mse`, `kl_divergence` | tokens | `reference` |
| `importance_sampling`, `ppo` | sampled tokens | `logprobs`, `advantages` |
| `clipped_advantage` | sampled tokens | `reference`, `advantages` |
| `dpo`, also as `preference` | pairs of answers | `reference` |
| `reward_bradley_terry` | pairs of answers | |
| `npo` | answers | `reference` |
| `kto` | answers | `reference`, `desirable`, `kl` |
| `topological`, `chirality`, `citation_validity` | structured answers | what `structures` adds |

`composite` mixes any of them. A loss never sees a model: what it needs is gathered for it where
the log-probabilities are made.
"""

from shammah.training.losses.loss import Inputs, Loss, Measures
from shammah.training.losses.registry import composite, get, names, register

__all__ = ["Inputs", "Loss", "Measures", "composite", "get", "names", "register"]
