"""The optimiser loop: Muon, AdamW, warmup, cosine, checkpoints, resume. Knows no corpus.

The schedule runs over a budget, either steps (repeatable to the bit on one machine) or minutes
(the learning rate follows the clock, so that a shared machine still ends on schedule).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from embedded_model.packing import IGNORE, Batch


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides how training goes, apart from data and model shape."""

    steps: int | None = None
    minutes: float | None = None
    seed: int = 7
    learning_rate: float = 1.5e-3
    muon_learning_rate: float = 4e-3
    floor: float = 0.02
    warmup: float = 0.04
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    label_smoothing: float = 0.1
    beside_weight: float = 2.0
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give the budget in steps or in minutes, one of the two")


@dataclass(slots=True)
class Progress:
    """Where a run stands; written with every checkpoint."""

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    tokens: int = 0
    learned_tokens: int = 0
    loss: float = 0.0
    beside_loss: float = 0.0


class Beside(Protocol):
    """Something else that the model learns in every step, with parameters of its own."""

    def own_parameters(self) -> dict[str, torch.nn.Parameter]: ...

    def loss(self, step: int) -> torch.Tensor: ...


class ThreadChoice:
    """The number of threads that trains fastest right now, found by trying.

    Two threads wait for each other at every operation, so beside other work on the machine one
    thread is often several times faster; on an idle machine two are.
    """

    def __init__(self, candidates: tuple[int, ...], *, trial: int = 2, keep: int = 60) -> None:
        self._candidates = candidates
        self._trial = trial
        self._keep = keep
        self._seconds = dict.fromkeys(candidates, 0.0)
        self._left = 0
        self._trials: list[int] = []

    def before_step(self) -> int:
        """Set the number of threads for the next step, and return it."""
        if len(self._candidates) == 1:
            chosen = self._candidates[0]
        elif self._trials:
            chosen = self._trials[-1]
        elif self._left > 0:
            chosen = min(self._seconds, key=self._seconds.__getitem__)
            self._left -= 1
        else:
            self._seconds = dict.fromkeys(self._candidates, 0.0)
            self._trials = [n for n in self._candidates for _ in range(self._trial)]
            self._left = self._keep
            chosen = self._trials[-1]
        torch.set_num_threads(chosen)
        return chosen

    def after_step(self, seconds: float) -> None:
        if self._trials:
            self._seconds[self._trials.pop()] += seconds


def train(
    model: Any,
    batches: Callable[[int, int], tuple[Batch, int]],
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool,
    threads: tuple[int, ...],
    say: Callable[[str], None],
    beside: Beside | None = None,
) -> Progress:
    """Train in place until the budget is spent.

    `threads` are the numbers of threads to choose from; give one for runs that must repeat.
    `batches(step, position)` gives a batch and how far the data position moves. The loss is
    cross-entropy over answer tokens, in nats; what is reported is without label smoothing.
    """
    torch.manual_seed(recipe.seed)
    parameters = dict(model.named_parameters())
    if beside is not None:
        parameters |= beside.own_parameters()
    optimizers = _Optimizers(parameters, recipe)
    progress = Progress()
    if resume and (folder / "progress.json").exists():
        progress = load_checkpoint(folder, parameters, optimizers)
        say(f"resumed at step {progress.step}, {progress.seconds / 60:.1f} minutes in")
    model.train()
    choice = ThreadChoice(threads)
    last_said = last_saved = started = time.monotonic() - progress.seconds
    recent_tokens, recent_started = 0, time.monotonic()
    while (done := _share_done(recipe, progress)) < 1.0:
        batch, moved = batches(progress.step, progress.position)
        rate = learning_rate(recipe, done)
        used = choice.before_step()
        before = time.monotonic()
        loss, other = _step(model, optimizers, batch, recipe, rate, beside, progress.step)
        choice.after_step(time.monotonic() - before)
        progress.step += 1
        progress.position += moved
        progress.tokens += batch.input_ids.numel()
        progress.learned_tokens += int((batch.labels != IGNORE).sum())
        kept = 0.0 if progress.step == 1 else 0.95
        progress.loss = kept * progress.loss + (1.0 - kept) * loss
        progress.beside_loss = kept * progress.beside_loss + (1.0 - kept) * other
        now = time.monotonic()
        progress.seconds = now - started
        recent_tokens += batch.input_ids.numel()
        if now - last_said > 10:
            speed = recent_tokens / (now - recent_started)
            say(f"{_line(recipe, progress, rate, speed)}  threads {used}")
            last_said, recent_tokens, recent_started = now, 0, now
        if now - last_saved > recipe.checkpoint_seconds:
            save_checkpoint(folder, parameters, optimizers, progress)
            last_saved = now
    save_checkpoint(folder, parameters, optimizers, progress)
    return progress


def learning_rate(recipe: Recipe, done: float) -> float:
    """Share of the peak rate: linear warmup, then a cosine down to `floor`. `done` in [0, 1]."""
    if done < recipe.warmup:
        return min(1.0, (done + 1e-3) / recipe.warmup)
    part = (done - recipe.warmup) / (1.0 - recipe.warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, part)))
    return recipe.floor + (1.0 - recipe.floor) * cosine


def save_checkpoint(
    folder: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizers: _Optimizers,
    progress: Progress,
) -> None:
    """Weights, optimiser state and random state; `progress.json` is replaced last."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": p.detach().clone() for name, p in parameters.items()}
    tensors |= optimizers.state()
    tensors["random"] = torch.get_rng_state()
    file = f"state-{progress.step}.safetensors"
    save_file(tensors, folder / file)
    text = json.dumps({**asdict(progress), "file": file})
    (folder / "progress.json.new").write_text(text, encoding="utf-8")
    (folder / "progress.json.new").replace(folder / "progress.json")
    for old in folder.glob("state-*.safetensors"):
        if old.name != file:
            old.unlink()


def load_checkpoint(
    folder: Path, parameters: dict[str, torch.nn.Parameter], optimizers: _Optimizers | None
) -> Progress:
    """Put a checkpoint back into the parameters, and into the optimiser if one is given."""
    fields = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / fields.pop("file"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
    if optimizers is not None:
        optimizers.load_state(tensors)
    torch.set_rng_state(tensors["random"])
    return Progress(**fields)


class _Optimizers:
    """Muon for the matrices inside the layers, AdamW for embeddings, biases and norms.

    Muon (https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum, so that rare
    associations are learned as fast as frequent ones: with few steps that is worth its time.
    """

    def __init__(self, named: dict[str, torch.nn.Parameter], recipe: Recipe) -> None:
        inside = {name for name, p in named.items() if p.dim() == 2 and ".layers." in name}
        hidden = [p for name, p in named.items() if name in inside]
        rest = [p for name, p in named.items() if name not in inside]
        self._muon = torch.optim.Muon(
            hidden,
            lr=recipe.muon_learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = torch.optim.AdamW(
            rest, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0.0, fused=True
        )
        self._names: dict[torch.Tensor, str] = {p: name for name, p in named.items()}
        self._rates = ((self._muon, recipe.muon_learning_rate), (self._adamw, recipe.learning_rate))

    def step(self, rate: float) -> None:
        """One update with both, `rate` being the share of the peak learning rate."""
        for optimizer, peak in self._rates:
            for group in optimizer.param_groups:
                group["lr"] = rate * peak
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor of both states, by name."""
        return {
            f"optimizer.{key}.{self._names[parameter]}": torch.as_tensor(value).clone()
            for optimizer, _ in self._rates
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        for optimizer, _ in self._rates:
            keys: tuple[str, ...] = ("momentum_buffer",)
            if optimizer is self._adamw:
                keys = ("step", "exp_avg", "exp_avg_sq")
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    name = self._names[parameter]
                    optimizer.state[parameter] = {
                        key: tensors[f"optimizer.{key}.{name}"] for key in keys
                    }


def _step(
    model: Any,
    optimizers: _Optimizers,
    batch: Batch,
    recipe: Recipe,
    rate: float,
    beside: Beside | None,
    step: int,
) -> tuple[float, float]:
    """One update; the loss over answer tokens, and that of what is learned beside."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        wanted = batch.labels != IGNORE
        logits = model.lm_head(hidden[wanted])
    logprobs = functional.log_softmax(logits.float(), dim=-1)
    picked = logprobs.gather(1, batch.labels[wanted][:, None]).mean()
    smooth = recipe.label_smoothing
    # The same as cross_entropy with label smoothing, from one softmax instead of two.
    loss = -(1.0 - smooth) * picked - smooth * logprobs.mean()
    torch.autograd.backward(loss)
    other = 0.0
    if beside is not None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            distance = beside.loss(step)
        torch.autograd.backward(recipe.beside_weight * distance)
        other = float(distance.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    optimizers.step(rate)
    return -float(picked.detach()), other


def _share_done(recipe: Recipe, progress: Progress) -> float:
    if recipe.steps is not None:
        return progress.step / recipe.steps
    assert recipe.minutes is not None
    return progress.seconds / (60.0 * recipe.minutes)


def _line(recipe: Recipe, progress: Progress, rate: float, speed: float) -> str:
    done = _share_done(recipe, progress)
    left = progress.seconds * (1.0 - done) / max(done, 1e-9)
    return (
        f"step {progress.step}  {done:6.1%}  loss {progress.loss:.4f}  "
        f"beside {progress.beside_loss:.3f}  rate {rate:.3f}  "
        f"{speed:,.0f} tok/s  {left / 60:.1f} min left"
    )
