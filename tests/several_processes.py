"""Runs of a few steps, in each of the processes that a launcher starts: one undisturbed, and one
that is stopped and gone on with, one by pairs, one by a loss of its own, and some drawn tokens.

python several_processes.py MODEL FOLDER

Writes what each found to FOLDER/process_N.json. Imported, it gives the run to a single process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shammah.errors import SamplingError, TrainingError
from shammah.models.load import load_base_model
from shammah.models.memory import free_memory
from shammah.ports.datum import Datum, TensorData
from shammah.ports.sampling_client import SamplingParams
from shammah.ports.training_client import AdamParams, leads
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training import parallel
from shammah.training.datums import from_tokens
from shammah.training.local_client import LocalTrainingClient
from shammah.training.loops.engine import LoopResult, run_loop
from shammah.training.loops.pairs import Pair
from shammah.training.loops.preference import PreferenceMethod
from shammah.training.loops.settings import LoopSettings
from shammah.training.loops.supervised import Supervised
from shammah.training.parallel import base_of, client_of, reward_client_of
from shammah.training.processes import Processes

SETTINGS = LoopSettings(
    learning_rate=1e-2, epochs=3, evaluate_every=4, checkpoint_every=3,
    best_metric="nll_per_token", restore_best=True,
)  # fmt: skip


def material() -> list[Datum]:
    """Ten examples of unequal weight: in windows of three, the shares of two are unequal too."""
    random = np.random.default_rng(0)
    rows = [random.integers(0, 250, 12 + 2 * number).tolist() for number in range(10)]
    return [
        from_tokens(row, [0.0] * 6 + [1.0] * (len(row) - 6), float(len(row) - 6)) for row in rows
    ]


def run(client: LocalTrainingClient, folder: Path, stop: int = 0) -> LoopResult:
    asked = iter(range(1000))
    method = Supervised(material(), held_out=material()[:3], batch_size=3)
    return asyncio.run(
        run_loop(
            client, method, SETTINGS, folder=folder,
            # Only one of them wishes.
            should_stop=lambda: bool(stop) and next(asked) == stop and leads(client),
        )
    )  # fmt: skip


def made_of(model: Path) -> LocalTrainingClient:
    """The client for how this process was started; some windows take it several passes."""
    base = base_of(ModelSettings(name=str(model), device="cpu", dtype="fp32"))
    return client_of(base, LoraSettings(rank=4), TrainingSettings(micro_batch_tokens=40))


def by_pairs(client: LocalTrainingClient) -> LoopResult:
    """DPO, with five pairs in windows of two."""
    examples = material()
    pairs = [Pair(one, other) for one, other in itertools.pairwise(examples[:6])]
    method = PreferenceMethod(pairs, pairs[:3], batch_size=2)
    return asyncio.run(run_loop(client, method, LoopSettings(learning_rate=1e-2, epochs=2)))


def by_own_loss(client: LocalTrainingClient) -> list[float]:
    """A loss of how likely all examples are beside each other, in three steps."""

    def spread(datums: Any, logprobs: Any) -> Any:
        likely = torch.stack([each.sum() for each in logprobs])
        beside = torch.log_softmax(torch.cat([likely, likely.new_zeros(1)]) / 50.0, 0)
        return -beside[::2].sum(), {"highest": likely.max()}

    async def steps() -> list[float]:
        found = []
        for count in (7, 4, 1):  # of one, a process has none
            output = await client.forward_backward_custom(material()[:count], spread, weight=2.0)
            norm = (await client.optim_step(AdamParams(1e-2))).grad_norm
            found += [output.loss, output.metrics["highest"], norm]
            found.append(float(sum(each.sum() for each in output.logprobs)))
        return found

    return asyncio.run(steps())


def by_scores(model: Path) -> list[float]:
    """The losses of a reward model, and what it scores then; of a base that was loaded whole."""
    base = load_base_model(ModelSettings(name=str(model), device="cpu", dtype="fp32"))
    client = reward_client_of(base, LoraSettings(rank=4), TrainingSettings(micro_batch_tokens=40))
    found = []

    async def steps() -> None:
        for _ in range(3):
            output = await client.forward_backward(material()[:6], "reward_bradley_terry")
            await client.optim_step(AdamParams(1e-2))
            found.append(output.loss)

    asyncio.run(steps())
    return [*found, *client.scores(material()[:3]).tolist()]


def drawn(client: LocalTrainingClient) -> dict[str, Any]:
    """What the trained model says to a seed, and to none; its log-probabilities, the base's too."""
    prompt = material()[0].model_input

    async def draw() -> dict[str, Any]:
        told: dict[str, Any] = {}
        for name, seed in (("seeded", 5), ("fresh", None)):
            params = SamplingParams(max_tokens=6, temperature=1.0, seed=seed)
            samples = await client.sampler.sample(prompt, params, 3)
            told[name] = [list(sample.tokens) for sample in samples]
        for name, sampler in (("trained", client.sampler), ("base", client.base_sampler)):
            told[name] = [float(each) for each in (await sampler.compute_logprobs(prompt))[1:]]
        return told

    return asyncio.run(draw())


def cramped(client: LocalTrainingClient) -> str:
    """What is said of drawing from a divided model where one process has too little memory."""
    parallel.free_memory = lambda device: 1000 * int(not leads(client))  # type: ignore[assignment]
    try:
        asyncio.run(client.sampler.compute_logprobs(material()[0].model_input))
    except SamplingError as error:
        return error.message
    finally:
        parallel.free_memory = free_memory
    return ""


def held(client: LocalTrainingClient) -> list[int]:
    """Bytes of the base's layers that this process holds, and that they have altogether."""
    layers = client.base.model.model.layers
    weights = [weight for name, weight in layers.named_parameters() if "lora_" not in name]
    own = [getattr(weight, "_local_tensor", weight) for weight in weights]
    sizes = [sum(each.untyped_storage().nbytes() for each in own)]
    return [*sizes, sum(weight.numel() * weight.element_size() for weight in weights)]


def failures(client: LocalTrainingClient) -> list[Any]:
    """What is raised where the share of one process alone is wrong: before its first pass, and
    after it; and what a step gives then."""
    good, other = material()[:2]
    inputs = good.loss_fn_inputs
    silent = Datum(
        good.model_input,
        {**inputs, "weights": TensorData(np.zeros_like(inputs["weights"].data))},
    )
    found: list[Any] = []
    reference = TensorData(np.full(len(other.model_input), -1.0, dtype=np.float32))
    whole = Datum(other.model_input, {**other.loss_fn_inputs, "reference": reference})
    for bad, loss in ((silent, "cross_entropy"), (good, "mse")):
        try:
            asyncio.run(client.forward_backward([whole, bad], loss))
        except TrainingError as error:
            found.append([type(error).__name__, error.message])
    # The process that was right has its gradients still; a step does away with them.
    with contextlib.suppress(TrainingError):
        asyncio.run(client.optim_step(AdamParams(0.0)))
    output = asyncio.run(client.forward_backward([good, other]))
    return [*found, output.loss, asyncio.run(client.optim_step(AdamParams(1e-2))).grad_norm]


def checksum(client: LocalTrainingClient) -> str:
    mark = hashlib.sha256()
    for parameter in client.lora.named_parameters().values():
        mark.update(parameter.detach().numpy().tobytes())
    return mark.hexdigest()


def main() -> None:
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    processes = Processes()
    told: dict[str, Any] = {"count": processes.count, "divided": processes.divide}
    for name, where, stop in (("whole", "whole", 0), ("first", "parts", 5), ("rest", "parts", 0)):
        client = made_of(model)
        result = run(client, folder / where, stop)
        told[name] = {
            "losses": result.losses,
            "figures": dict(result.figures),
            "ended": result.ended,
            "weights": checksum(client),
            "held": held(client),
        }
    asyncio.run(client.save_weights(folder / f"adapter_{processes.number}.safetensors"))
    told["drawn"] = drawn(client)
    told["held"] = held(client)
    told["cramped"] = cramped(client)
    told["failures"] = failures(made_of(model))
    told["own"] = by_own_loss(made_of(model))
    result = by_pairs(made_of(model))
    told["pairs"] = {"losses": result.losses, "figures": dict(result.figures)}
    told["scores"] = by_scores(model)
    (folder / f"process_{processes.number}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
