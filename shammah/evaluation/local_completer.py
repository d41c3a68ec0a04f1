"""A base model, with or without an adapter, opened for as long as it is asked.

    async with local_completer("embedded", adapter=path) as model:
        figures = report(await evaluate(examples, model, [scorer("exact_match")])).figures()

Knows how a model is loaded and answers; nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from shammah.ports.llm_client import ChatParams
from shammah.settings import ModelSettings

if TYPE_CHECKING:
    from shammah.generation.engine import Engine
    from shammah.generation.engine_batch import EngineCompleter
    from shammah.generation.lora import AdapterState

MAX_TOKENS = 512


@asynccontextmanager
async def local_completer(
    model: ModelSettings | str = "embedded",
    *,
    adapter: Path | None = None,
    max_tokens: int = MAX_TOKENS,
    temperature: float = 0.0,
    seed: int | None = None,
) -> AsyncIterator[EngineCompleter]:
    """A model of this machine as a `MessageCompleter` and `BatchCompleter`, to be given to
    `evaluate` or asked by itself: `(await model.complete((user("Which port?"),))).text`.

    It is a copy of its own, whatever else is being trained here.

    Args:
        model: its settings, or its name: `embedded`, a registered one, a folder, or a Hub name.
        adapter: the file of an adapter, with its description beside it, as a run leaves it in
            `artifacts["adapter"]`; None is the base model.
        max_tokens: of an answer at most.
        temperature: 0 takes the likeliest token.

    Raises:
        ModelError: the model cannot be loaded.
        AdapterError: the adapter cannot be read, or does not fit the model.
        DataError: a value is out of range.
    """
    params = ChatParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    settings = ModelSettings(name=model) if isinstance(model, str) else model
    engine, state = await asyncio.to_thread(_opened, settings, adapter)
    try:
        from shammah.generation.engine_batch import EngineCompleter

        yield EngineCompleter(engine, state, params)
    finally:
        await asyncio.to_thread(engine.close)


def _opened(settings: ModelSettings, adapter: Path | None) -> tuple[Engine, AdapterState]:
    from shammah.adapters.metadata import AdapterMetadata
    from shammah.adapters.weights import load_checked
    from shammah.generation.engine import Engine
    from shammah.models.load import load_base_model
    from shammah.renderers.registry import renderer_for

    # What is wrong with an adapter is said before a model is loaded.
    about = None if adapter is None else AdapterMetadata.read(adapter.with_suffix(".json"))
    base = load_base_model(settings)
    weights = None
    if adapter is not None and about is not None:
        weights = load_checked(adapter, about, base.shape)
    engine = Engine(base, renderer_for(base.tokenizer, base.stop_tokens, base.renderer))
    try:
        return engine, engine.prepare_aside(weights, adapter.stem if adapter else None)
    except BaseException:
        engine.close()
        raise
