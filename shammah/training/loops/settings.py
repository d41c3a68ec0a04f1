"""How a loop runs, whatever it learns: how long, how fast, when it looks and when it stops."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ScheduleName = Literal["constant", "linear", "cosine", "polynomial", "exponential"]


class LoopSettings(BaseModel):
    """Settings of `engine.run_loop`. Values are checked when it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    learning_rate: float = Field(default=1e-4, gt=0, le=1.0)
    """The highest one."""
    schedule: ScheduleName = "linear"
    """How the learning rate falls."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which it rises first."""
    power: float = Field(default=2.0, gt=0)
    """Of the polynomial schedule: (1 - x)^power."""
    final_share: float = Field(default=0.01, gt=0, le=1.0)
    """Share of the learning rate that the exponential schedule ends at."""
    epochs: int = Field(default=1, ge=1)
    """How often all examples are gone through."""
    max_steps: int = Field(default=0, ge=0)
    """Optimiser steps at most; 0 means epochs alone decide."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Of AdamW."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Of AdamW."""
    eps: float = Field(default=1e-8, gt=0)
    """Of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 evaluates at the end alone. One before the first step, and one
    after the last, always."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 writes one where it is stopped and at the end."""
    keep_last: int = Field(default=1, ge=1)
    """Checkpoints that are kept."""
    best_metric: str = ""
    """The figure of evaluations that tells the best adapter; empty keeps none."""
    best_lower: bool = True
    """Whether less of it is better."""
    patience: int = Field(default=0, ge=0)
    """Evaluations in a row that may bring nothing better before it ends; 0 goes on."""
    min_delta: float = Field(default=0.0, ge=0)
    """By how much better is better, for `patience`."""
    restore_best: bool = False
    """End with the best adapter in place of the last."""
    explosion: float = Field(default=0.0, ge=0)
    """A loss above so many times the mean of the last twenty is a divergence; 0 looks for what is
    not finite alone."""
    seed: int = Field(default=0, ge=0)
    """Of the order and of all that is drawn."""
