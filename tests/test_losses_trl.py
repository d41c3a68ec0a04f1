"""The same log-probabilities through TRL's trainers and through ours give the same loss.

TRL's own loss functions run, on a trainer that was not set up and a model that only says what it is
told to. Skipped where the extra `bench` is not installed.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from shammah.training import losses

pytest.importorskip("trl", reason="TRL is not installed (extra `bench`)")

PAIRS, TOKENS, PROMPT = 4, 6, 3


class Accelerator:
    """What a single process gathers is what it has."""

    device = torch.device("cpu")

    @staticmethod
    def gather(values: Any) -> Any:
        return values

    gather_for_metrics = gather

    @staticmethod
    def reduce(values: Any, reduction: str = "sum") -> Any:
        return values


def batch(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities, those of the reference, and which are of the answer, [rows, TOKENS]."""
    random = torch.Generator().manual_seed(seed)
    now, before = (
        -3 * torch.rand(rows, TOKENS, dtype=torch.float64, generator=random) for _ in range(2)
    )
    lengths = torch.randint(1, TOKENS + 1, (rows, 1), generator=random)
    mask = (torch.arange(TOKENS)[None] < lengths).long()
    return now * mask, before * mask, mask


def trainer(kind: Any, **attributes: Any) -> Any:
    made = kind.__new__(kind)
    training = SimpleNamespace(training=True)
    common = {
        "accelerator": Accelerator(),
        "aux_loss_enabled": False,
        "model": training,
        "args": SimpleNamespace(use_bias_correction_kl=False, delta=None),
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in {**common, **attributes}.items():
        object.__setattr__(made, name, value)
    return made


def model(logprobs: torch.Tensor) -> Any:
    """Says these log-probabilities after a prompt, as TRL's fused head does."""
    rows = len(logprobs)
    padded = torch.cat([torch.zeros(rows, PROMPT - 1, dtype=logprobs.dtype), logprobs], 1)

    def run(**given: Any) -> Any:
        return SimpleNamespace(
            log_probs=padded,
            entropy=torch.zeros_like(padded),
            mean_logits=torch.zeros_like(padded),
            is_top1=torch.zeros_like(padded, dtype=torch.bool),
        )

    return run


def read(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What TRL's collators give of these answers."""
    rows = len(mask)
    whole = torch.cat([torch.zeros(rows, PROMPT, dtype=torch.long), mask], 1)
    return {
        "input_ids": torch.ones_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
    }


def ours(
    spec: str, now: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, **more: torch.Tensor
) -> float:
    """With the answers in the given order; what has a column for each token is cut to them."""
    keep = mask.bool()
    inputs = {
        "weights": weights[keep],
        "example": torch.arange(len(mask))[:, None].expand_as(mask)[keep],
        **{key: value[keep] if value.shape == mask.shape else value for key, value in more.items()},
    }
    return float(losses.get(spec).compute(now[keep], inputs))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kinds", "spec"),
    [
        ((("sigmoid",), (1.0,)), "dpo:beta=0.2"),
        ((("ipo",), (1.0,)), "dpo:beta=0.2,variant=ipo"),
    ],
    ids=["dpo", "ipo"],
)
def test_dpo(seed: int, kinds: Any, spec: str) -> None:
    from trl import DPOTrainer

    now, before, mask = batch(seed, 2 * PAIRS)
    theirs = trainer(
        DPOTrainer,
        beta=0.2,
        loss_types=list(kinds[0]),
        loss_weights=list(kinds[1]),
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        label_smoothing=0.0,
    )
    references = before.sum(1)
    given = {
        **read(mask),
        "ref_chosen_logps": references[:PAIRS],
        "ref_rejected_logps": references[PAIRS:],
    }
    wanted = theirs._compute_loss(model(now), given, False)
    # Theirs has all chosen ones first, ours each pair together.
    order = torch.arange(2 * PAIRS).reshape(2, PAIRS).t().reshape(-1)
    weights = (mask.double() / mask.sum(1, keepdim=True)) / PAIRS
    found = ours(spec, now[order], mask[order], weights[order], reference=before[order])
    assert found == pytest.approx(float(wanted), rel=1e-9)


def test_dpo_with_a_supervised_term() -> None:
    from trl import DPOTrainer

    now, before, mask = batch(7, 2 * PAIRS)
    theirs = trainer(
        DPOTrainer,
        beta=0.1,
        loss_types=["sigmoid", "sft"],
        loss_weights=[1.0, 0.5],
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        label_smoothing=0.0,
    )
    references = before.sum(1)
    given = {
        **read(mask),
        "ref_chosen_logps": references[:PAIRS],
        "ref_rejected_logps": references[PAIRS:],
    }
    wanted = theirs._compute_loss(model(now), given, False)
    order = torch.arange(2 * PAIRS).reshape(2, PAIRS).t().reshape(-1)
    pairs = (mask.double() / mask.sum(1, keepdim=True)) / PAIRS
    apart = ours("dpo", now[order], mask[order], pairs[order], reference=before[order])
    # Their supervised term is a mean over the tokens of all chosen answers: so ours has to weigh.
    tokens = mask.double() / mask[:PAIRS].sum()
    both = ours(
        "dpo:supervised=0.5", now[order], mask[order], tokens[order], reference=before[order]
    )
    alone = ours("dpo", now[order], mask[order], tokens[order], reference=before[order])
    assert apart + both - alone == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_kto(seed: int) -> None:
    from trl import KTOTrainer

    now, before, mask = batch(seed, 6)
    # The answers to other prompts: how far the model has moved altogether.
    other, other_before, _ = batch(seed + 10, 6)
    label = torch.tensor([1, 0, 1, 1, 0, 0]).bool()
    theirs = trainer(
        KTOTrainer,
        beta=0.3,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=True,
        desirable_weight=1.5,
        undesirable_weight=0.5,
    )
    object.__setattr__(theirs, "_compute_kl_logps", lambda *_: other.sum(1))
    given = {
        **read(mask),
        "label": label,
        "ref_logps": before.sum(1),
        "ref_KL_logps": other_before.sum(1),
    }
    wanted = theirs._compute_loss(model(now), given, False)
    baseline = max(0.0, float((other - other_before).sum(1).mean()))
    found = ours(
        "kto:beta=0.3,desirable_weight=1.5,undesirable_weight=0.5",
        now,
        mask,
        (mask.double() / mask.sum(1, keepdim=True)) / 6,
        reference=before,
        desirable=label.long(),
        kl=torch.full((6,), baseline, dtype=torch.float64),
    )
    assert found == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_policy_losses(seed: int, beta: float) -> None:
    from trl import GRPOTrainer

    now, sampled, mask = batch(seed, 5)
    base = batch(seed + 20, 5)[1] * mask
    advantages = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    theirs = trainer(
        GRPOTrainer,
        loss_type="bnpo",
        beta=beta,
        epsilon_low=0.1,
        epsilon_high=0.3,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )
    logprobs = lambda *_, **__: (now, torch.zeros_like(now), None)  # noqa: E731
    object.__setattr__(theirs, "_get_per_token_logps_and_entropies", logprobs)
    given = {
        "prompt_ids": torch.ones(5, PROMPT, dtype=torch.long),
        "prompt_mask": torch.ones(5, PROMPT, dtype=torch.long),
        "completion_ids": torch.ones_like(mask),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": sampled,
        "ref_per_token_logps": base,
    }
    wanted = theirs._compute_loss(None, given)
    more = {
        "logprobs": sampled,
        "reference": base,
        "advantages": advantages[:, None].expand_as(mask),
    }
    weights = mask.double() / mask.sum()
    found = ours("ppo:clip_low=0.1,clip_high=0.3", now, mask, weights, **more)
    if beta:
        found += beta * ours("kl_divergence", now, mask, weights, **more)
    assert found == pytest.approx(float(wanted), rel=1e-9)
    # Never clipped, their loss is plain importance sampling.
    object.__setattr__(theirs, "epsilon_low", 1.0)
    object.__setattr__(theirs, "epsilon_high", 1e9)
    wide = theirs._compute_loss(None, given)
    plain = ours("importance_sampling", now, mask, weights, **more)
    if beta:
        plain += beta * ours("kl_divergence", now, mask, weights, **more)
    assert plain == pytest.approx(float(wide), rel=1e-9)


def test_bradley_terry() -> None:
    from trl import RewardTrainer

    scores = torch.randn(2 * PAIRS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    margin = torch.rand(PAIRS, dtype=torch.float64)
    theirs = trainer(RewardTrainer)
    theirs.args.center_rewards_coefficient = 0.05
    given = {"attention_mask": torch.ones(1, 1), "margin": margin}
    wanted = theirs.compute_loss(lambda **_: SimpleNamespace(logits=scores[:, None]), given)
    order = torch.arange(2 * PAIRS).reshape(2, PAIRS).t().reshape(-1)
    found = losses.get("reward_bradley_terry", center=0.05).compute(
        scores[order],
        {
            "weights": torch.full((2 * PAIRS,), 1 / PAIRS, dtype=torch.float64),
            "example": torch.arange(2 * PAIRS),
            "coefficients": torch.ones(2 * PAIRS, dtype=torch.float64),
            "margin": torch.repeat_interleave(margin, 2),
        },
    )
    assert float(found) == pytest.approx(float(wanted), rel=1e-9)
    assert np.isfinite(float(found))
