"""A loss of one's own: focal cross-entropy, for which tokens count that are not known yet.

    shammah train sft --data faq.csv --plugins scripts/examples/custom_loss.py \
        --loss "0.8 focal(gamma=2), 0.2 cross_entropy"

`(1 - p)^gamma * -log p` of each token (Lin et al. 2017, arXiv 1708.02002). A loss is a sum over the
learned tokens; the step divides by their weight. What is reported beside it becomes a metric.
"""

import torch

from shammah import register_loss
from shammah.training.losses import Inputs, Loss, Measures


def focal(*, gamma: float = 2.0) -> Loss:
    def value(logprobs: torch.Tensor, inputs: Inputs) -> tuple[torch.Tensor, Measures]:
        weights, p = inputs["weights"], logprobs.exp()
        loss = -(weights * (1 - p) ** gamma * logprobs).sum()
        return loss, {"known": ((weights * (p.detach() > 0.9)).sum(), weights.sum())}

    return Loss(value)


register_loss("focal", focal)
