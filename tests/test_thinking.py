"""A model that thinks before it answers: the thought is no part of what it says."""

from __future__ import annotations

from shammah.adapters.weights import LoraWeights
from shammah.generation.engine import Engine
from shammah.generation.params import GenerationParams
from shammah.messages import user
from shammah.models.load import BaseModel
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, TrainingSettings
from shammah.training.datums import from_tokens
from shammah.training.examples import supervised
from shammah.training.local_client import LocalTrainingClient
from shammah.training.supervised import train_supervised

ASKED = (user("Hello!"),)


async def test_a_thought_is_kept_apart(embedded_model: BaseModel) -> None:
    renderer = renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
    prompt = renderer.generation_prompt(ASKED)
    written = "<think>\nSomebody greets me.\n</think>\n\nAhoy!<|im_end|>"
    answer = embedded_model.tokenizer(written, add_special_tokens=False)["input_ids"]
    lesson = from_tokens([*prompt, *answer], [0.0] * len(prompt) + [1.0] * len(answer))
    chosen = TrainingSettings(learning_rate=4e-3)
    client = LocalTrainingClient(embedded_model, LoraSettings(), chosen)
    try:
        result = await train_supervised(client, [supervised(lesson)], [1.0], [], chosen)
        assert result.learned == [True]
        tensors = {
            name.removeprefix("base_model.model."): tensor.detach().clone()
            for name, tensor in client.lora.named_parameters().items()
        }
        scaling = client.lora.scaling
    finally:
        client.close()
    engine = Engine(embedded_model, renderer)
    try:
        a, b = ".lora_A.weight", ".lora_B.weight"
        modules = {
            name.removesuffix(a): (tensor, tensors[name.removesuffix(a) + b])
            for name, tensor in tensors.items()
            if name.endswith(a)
        }
        engine.activate(LoraWeights(modules, scaling), "thinker")
        stream = engine.stream(ASKED, GenerationParams(max_tokens=64))
        pieces = [piece async for piece in stream]
    finally:
        engine.close()
    found = stream.result
    assert (found.text, found.thinking) == ("Ahoy!", "Somebody greets me.")
    assert "".join(pieces) == "Ahoy!" and found.stop_reason == "end"
