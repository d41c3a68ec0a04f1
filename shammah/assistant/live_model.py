"""The model that answers now: base weights, engine, and the adapter they answer with.

Loads in a thread, swaps between two answers, follows what the library says is active. Knows
nothing of conversations or feedback.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from shammah.assistant.views import Choice, Notice
from shammah.errors import AdapterError, ShammahError
from shammah.paths import Paths
from shammah.settings import AdaptersSettings, LoraSettings, ModelSettings

if TYPE_CHECKING:
    from shammah.adapters.library import Adapter, AdapterLibrary
    from shammah.assistant.routing import DomainRouting
    from shammah.assistant.scope import ActiveScope
    from shammah.generation.embedder import Embedders
    from shammah.generation.engine import Engine
    from shammah.models.describe import ModelDescription
    from shammah.models.load import BaseModel


class LiveModel:
    """One base model with its engine, replaced whole by `load`.

    Args:
        on_notice: called on the event loop with what the user should read.
        paths: where vectors of what adapters were taught, and anchors, are kept.
        fixed_adapter: answer with this adapter whatever the library says; `none` for the base
            model; None follows the library.
    """

    def __init__(
        self,
        *,
        on_notice: Callable[[Notice], None],
        paths: Paths,
        fixed_adapter: str | None = None,
    ) -> None:
        self.base: BaseModel | None = None
        self.engine: Engine | None = None
        self._on_notice = on_notice
        self._paths = paths
        self._fixed_adapter = fixed_adapter
        self._routing: DomainRouting | None = None
        self._scope: ActiveScope | None = None
        self._embedders: Embedders | None = None
        self._swap_lock = asyncio.Lock()
        self._pins = contextlib.ExitStack()

    async def load(self, settings: ModelSettings, library: Awaitable[AdapterLibrary]) -> None:
        """Load a base model and its active adapter; the present model stays until that is done.

        Args:
            library: awaited only when the model is there, so that both can be opened side by side.

        Raises:
            ModelError: it cannot be loaded.
            AdapterError: the fixed adapter cannot be used.
        """
        base, engine = await asyncio.to_thread(_load, settings)
        previous, self.base, self.engine = self.engine, base, engine
        self._routing = self._scope = self._embedders = None
        if previous is not None:
            await asyncio.to_thread(previous.close)
        for note in base.notes:
            self._on_notice(Notice("info", note))
        adapters = await library
        if self._fixed_adapter is None:
            await self.follow(adapters)
        elif self._fixed_adapter != "none":
            adapter = await asyncio.to_thread(adapters.get, self._fixed_adapter)
            self._pins.enter_context(adapters.pin(adapter.name))
            await self._swap(adapter)

    def require(self) -> tuple[BaseModel, Engine]:
        """The loaded model; only to be called once `load` has returned."""
        if self.base is None or self.engine is None:
            raise RuntimeError("the model is used before it was loaded")
        return self.base, self.engine

    async def follow(self, library: AdapterLibrary) -> None:
        """Answer with what the library says is active; a broken adapter is left out, and said."""
        if self._fixed_adapter is not None or self.base is None or self.engine is None:
            return
        name = await asyncio.to_thread(library.active, self.base.fingerprint)
        if name == self.engine.active_name:
            return
        try:
            adapter = await asyncio.to_thread(library.get, name) if name else None
            await self._swap(adapter)
        except ShammahError as error:
            answering = self.engine.active_name or "the base model"
            self._on_notice(
                Notice("error", f"{name} was not loaded: {error}\n{answering} goes on answering.")
            )

    async def choose(
        self, question: str, settings: AdaptersSettings, library: AdapterLibrary
    ) -> Choice:
        """Which adapter answers a question: that of its domain, else the one in use within its
        scope, else none."""
        _, engine = self.require()
        routing = self._routing_for(settings, library)
        routed = await routing.route(question, settings) if routing is not None else None
        if routed is not None:
            return Choice(routed.state, routed.route)
        near = await self._scope_for(library).nearness(question, settings)
        outside = near is not None and not near.within(settings.scope_threshold)
        return Choice(engine.bare if outside else None, None, near, outside)

    async def look_at_lessons(self, settings: AdaptersSettings, library: AdapterLibrary) -> None:
        """Read the lessons of new adapters ahead of the question that needs them."""
        if self.engine is None:
            return
        routing = self._routing_for(settings, library)
        if routing is not None:
            await routing.look(settings)
        await self._scope_for(library).look(settings)

    def _scope_for(self, library: AdapterLibrary) -> ActiveScope:
        if self._scope is None:
            from shammah.assistant.scope import ActiveScope
            from shammah.models.anchors import anchors_in, read_anchors

            base, engine = self.require()
            kept = self._paths.anchors(base.fingerprint)
            self._scope = ActiveScope(
                self._embedders_of(),
                engine,
                library,
                self._paths.embeddings / "scope",
                lambda: read_anchors(base.path) or anchors_in(kept),
                self._from_any_thread(),
            )
        return self._scope

    def _embedders_of(self) -> Embedders:
        if self._embedders is None:
            from shammah.generation.embedder import Embedders

            base, engine = self.require()
            self._embedders = Embedders(base, engine.renderer)
        return self._embedders

    def _from_any_thread(self) -> Callable[[Notice], None]:
        loop = asyncio.get_running_loop()

        def tell(notice: Notice) -> None:
            loop.call_soon_threadsafe(self._on_notice, notice)

        return tell

    def _routing_for(
        self, settings: AdaptersSettings, library: AdapterLibrary
    ) -> DomainRouting | None:
        base, engine = self.base, self.engine
        if settings.routing == "off" or self._fixed_adapter is not None:
            return None
        if base is None or engine is None:
            return None
        if self._routing is None:
            from shammah.assistant.routing import DomainRouting

            self._routing = DomainRouting(
                base,
                self._embedders_of(),
                engine,
                library,
                self._paths.embeddings,
                self._from_any_thread(),
            )
        return self._routing

    async def use(self, name: str | None, library: AdapterLibrary) -> str | None:
        """Answer with this adapter (None: the base model) from the next answer on, and remember it.

        Raises:
            AdapterError: it is not there or fails a check; the running one stays.
        """
        base, _ = self.require()
        if self._fixed_adapter is not None:
            raise AdapterError(
                "This chat was started with a fixed adapter.",
                hint="Start it without --adapter to load others.",
            )
        adapter = await asyncio.to_thread(library.get, name) if name else None
        await self._swap(adapter)
        chosen = adapter.name if adapter else None
        await asyncio.to_thread(library.activate, base.fingerprint, chosen)
        return chosen

    async def rollback(self, library: AdapterLibrary) -> str | None:
        """Go back to what answered before the active adapter; its name, None for the base model.

        Raises:
            AdapterError: there is nothing before it.
        """
        base, _ = self.require()
        name = await asyncio.to_thread(library.rollback, base.fingerprint)
        await self.follow(library)
        return name

    async def import_peft(self, folder: Path, library: AdapterLibrary) -> Adapter:
        """Take an adapter in PEFT's layout into the library.

        Raises:
            AdapterError: it does not fit the live model, or fails a check.
        """
        from shammah.adapters.peft_format import import_peft

        base, _ = self.require()
        return await asyncio.to_thread(import_peft, folder, base.shape, library)

    async def info(self, lora: LoraSettings) -> ModelDescription:
        """What the live model is, and what an adapter of those settings would add."""
        from shammah.models.describe import describe
        from shammah.training.lora import trainable_parameters

        base, _ = self.require()

        def work() -> ModelDescription:
            return describe(base, trainable_parameters(base.model, lora))

        return await asyncio.to_thread(work)

    async def close(self) -> None:
        self._pins.close()
        if self.engine is not None:
            await asyncio.to_thread(self.engine.close)

    async def _swap(self, adapter: Adapter | None) -> None:
        base, engine = self.require()
        async with self._swap_lock:
            await asyncio.to_thread(_publish, base, engine, adapter)
        meant = adapter.metadata.renderer if adapter and adapter.metadata else None
        if adapter is not None and meant not in (None, engine.renderer.name):
            text = (
                f"{adapter.name} was trained on conversations as `{meant}` writes them; here "
                f"`{engine.renderer.name}` writes them, and it may answer worse. The setting "
                "model.renderer names the other one, one of your own as file.py:name."
            )
            self._on_notice(Notice("warning", text))


def _load(settings: ModelSettings) -> tuple[BaseModel, Engine]:
    from shammah.generation.engine import Engine
    from shammah.models.load import load_base_model
    from shammah.renderers.registry import renderer_for

    base = load_base_model(settings)
    return base, Engine(base, renderer_for(base.tokenizer, base.stop_tokens, base.renderer))


def _publish(base: BaseModel, engine: Engine, adapter: Adapter | None) -> None:
    """Check an adapter against the live model and hand it to the engine; all or nothing."""
    from shammah.adapters.weights import load_checked

    if adapter is None:
        engine.activate(None, None)
        return
    weights = load_checked(adapter.path, adapter.require_metadata(), base.shape)
    engine.activate(weights, adapter.name)
