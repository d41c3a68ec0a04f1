"""The assistant as a running application: a model that answers, a memory, a trainer behind it.

Starts at once and loads behind the caller's back: nothing heavy is imported until `start`, and
then only in threads. Knows nothing of terminals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from shammah.assistant.answers import AnswerHandle
from shammah.assistant.exporting import open_export
from shammah.assistant.live_model import LiveModel
from shammah.assistant.views import AnswerComparison, Choice, LessonCheck, Notice, Status
from shammah.errors import FeedbackError, ShammahError, UsageError
from shammah.messages import Conversation, assistant, system, user
from shammah.paths import Paths
from shammah.settings import Settings

if TYPE_CHECKING:
    from shammah.adapters.library import Adapter, AdapterLibrary
    from shammah.adapters.merging import MergeOptions
    from shammah.assistant.workspace import Workspace
    from shammah.feedback.exchanges import Exchange
    from shammah.feedback.store import Rating, Recorded
    from shammah.generation.answer import Answer
    from shammah.generation.params import GenerationParams
    from shammah.learning.queue import Job
    from shammah.learning.supervisor import Trainer
    from shammah.models.describe import ModelDescription
    from shammah.tracking.otel import ChatExport

log = logging.getLogger("shammah")

WATCH_SECONDS = 0.5
"""How often another process's changes (feedback, adapters) are looked for."""
RETRY_TEMPERATURE, RETRY_TOP_P = 0.7, 0.9
"""A second try at temperature 0 would say the same again; unlikely words stay out of it."""


class Assistant:
    """Ask, rate, train, swap. `async with` it, or `start` and `close` it.

    Args:
        settings: what is configured; None takes the settings file of `paths`.
        paths: where data lives; None is the user's own place.
        on_notice: called on the event loop with what the user should read.
        on_change: called on the event loop when `status` has changed.
        train: run queued jobs in the background.
        adapter: answer with this adapter whatever is active; `none` for the base model.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        paths: Paths | None = None,
        *,
        on_notice: Callable[[Notice], None] | None = None,
        on_change: Callable[[], None] | None = None,
        train: bool = True,
        adapter: str | None = None,
    ) -> None:
        self.paths = paths or Paths.default()
        if settings is None:
            from shammah.settings_file import load

            settings = load(self.paths.config_file)
        self.settings = settings
        self.session = uuid.uuid4().hex[:12]
        self.conversation: Conversation = ()
        self.last_exchange: Exchange | None = None
        self.answering = False
        self.set_system(settings.chat.system)
        self._on_notice = on_notice or (lambda notice: None)
        self._on_change = on_change or (lambda: None)
        self._train = train
        self._live = LiveModel(on_notice=self._on_notice, paths=self.paths, fixed_adapter=adapter)
        self._trainer: Trainer | None = None
        self._opening: asyncio.Task[Workspace] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._exporting: asyncio.Task[None] | None = None
        self._export: ChatExport | None = None
        self._answer_lock = asyncio.Lock()
        self._buffer_label: str | None = None
        self._tokens_per_second: float | None = None
        self._choice = Choice()
        self._trimming_said = False

    # --- life -------------------------------------------------------------------------------

    async def start(self, *, load_model: bool = True) -> None:
        """Begin opening the stores and loading the model; returns at once."""
        self._opening = asyncio.create_task(self._open())
        if load_model:
            self._loading = asyncio.create_task(self._load(self.settings))
        self._watching = asyncio.create_task(self._guarded(self._run_behind()))
        self._exporting = asyncio.create_task(self._guarded(self._open_export()))

    async def workspace(self) -> Workspace:
        """The stores, once they are open.

        Raises:
            StorageError: they cannot be opened.
        """
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def ready(self) -> None:
        """Wait until the model can answer.

        Raises:
            ModelError: it cannot be loaded.
        """
        if self._loading is None:
            self._loading = asyncio.create_task(self._load(self.settings))
        await asyncio.shield(self._loading)

    async def close(self) -> None:
        """Stop answering and training (a running job is checkpointed) and close the stores."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._trainer is not None:
            await self._trainer.stop(checkpoint=True)
        if self._loading is not None:
            await asyncio.gather(self._loading, return_exceptions=True)
        await self._live.close()
        if self._exporting is not None:
            await self._exporting
        if self._export is not None:
            await asyncio.to_thread(self._export.close)
        if self._opening is not None:
            with contextlib.suppress(ShammahError):
                (await self._opening).close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    @property
    def status(self) -> Status:
        loading, engine = self._loading, self._live.engine
        failed = loading is not None and loading.done() and loading.exception() is not None
        return Status(
            model=self.settings.model.name,
            model_state="ready" if engine else "failed" if failed else "loading",
            adapter=engine.active_name if engine else None,
            buffer_label=self._buffer_label,
            training=self._trainer.status() if self._trainer else None,
            tokens_per_second=self._tokens_per_second,
            route=self._choice.route,
            outside=self._choice.outside,
        )

    # --- asking -----------------------------------------------------------------------------

    def ask(self, text: str) -> AnswerHandle:
        """Answer a question in the running conversation."""
        return AnswerHandle(lambda handle: self._answer(handle, text))

    def retry(self) -> AnswerHandle:
        """Answer the last question once more, differently.

        Raises:
            UsageError: nothing was answered yet.
        """
        if len(self.conversation) < 2 or self.conversation[-1].role != "assistant":
            raise UsageError("There is no answer to try again.", hint="Ask something first.")
        return AnswerHandle(lambda handle: self._answer(handle, None))

    def set_system(self, text: str) -> None:
        """Begin the conversation with this system message (empty: with none)."""
        rest = tuple(message for message in self.conversation if message.role != "system")
        self.conversation = (system(text), *rest) if text.strip() else rest

    def clear(self) -> None:
        """Forget the conversation (not what was stored of it)."""
        self.conversation = tuple(m for m in self.conversation if m.role == "system")
        self.last_exchange = None
        self._trimming_said = False

    async def save(self, path: Path) -> Path:
        """Write the conversation as Markdown, or as JSON for a name that ends in .json.

        Raises:
            StorageError: the file cannot be written.
        """
        from shammah.assistant.transcript import write_transcript

        return await asyncio.to_thread(write_transcript, self.conversation, path)

    async def _answer(self, handle: AnswerHandle, text: str | None) -> AsyncIterator[str]:
        """Decode, hand on, store. `text` None asks the last question again."""
        await self.ready()
        workspace = await self.workspace()
        async with self._answer_lock:
            base, engine = self._live.require()
            asked = self.conversation[:-1] if text is None else (*self.conversation, user(text))
            params = self._params(again=text is None)
            prompt = await self._fit(asked, params)
            self.answering = True
            self._on_change()
            try:
                async with self._priority():
                    choice = handle.choice = self._choice = await self._live.choose(
                        prompt[-1].text, self.settings.adapters, workspace.library
                    )
                    stream = engine.stream(prompt, params, state=choice.state)
                    handle.attach(stream)
                    async for piece in stream:
                        yield piece
                answer = handle.answer = stream.result
            finally:
                self.answering = False
                self._on_change()
            if answer.tokens:
                self._tokens_per_second = answer.tokens_per_second
            if answer.cut and not answer.text.strip():
                return
            # Stored before the caller sees the end, so that a rating always finds its exchange.
            handle.exchange = self.last_exchange = await asyncio.to_thread(
                workspace.exchanges.add,
                session=self.session,
                messages=prompt,
                response=answer.text,
                cut=answer.cut,
                model=base.name,
                fingerprint=base.fingerprint,
                adapter=answer.adapter,
                generation=answer.generation,
                settings=asdict(replace(params, seed=answer.seed)),
            )
            self.conversation = (*asked, assistant(answer.text))

    async def aside(self, conversation: Conversation, params: GenerationParams) -> Answer:
        """The model's answer to something else; the running conversation does not know of it.

        Raises:
            ContextTooLongError: the prompt alone fills the context.
            GenerationError: decoding failed.
            ModelError: the model cannot be loaded.
        """
        await self.ready()
        async with self._answer_lock:
            _, engine = self._live.require()
            async with self._priority():
                return await asyncio.to_thread(engine.generate, conversation, params)

    def _params(self, *, again: bool) -> GenerationParams:
        from shammah.generation.params import from_settings

        params = from_settings(self.settings.generation)
        if not again:
            return params
        return replace(
            params,
            temperature=max(params.temperature, RETRY_TEMPERATURE),
            top_p=min(params.top_p, RETRY_TOP_P),
            seed=secrets.randbelow(2**31),
        )

    async def _fit(self, asked: Conversation, params: GenerationParams) -> Conversation:
        """The conversation without its oldest turns, where it is longer than the context."""
        from shammah.renderers.trim import trim_conversation

        base, engine = self._live.require()
        reserve = min(params.max_tokens, base.context_length // 4)
        fitting, dropped = await asyncio.to_thread(
            trim_conversation, engine.renderer, asked, base.context_length, reserve
        )
        if dropped and not self._trimming_said:
            self._trimming_said = True
            self._on_notice(
                Notice(
                    "info",
                    f"The conversation is longer than the model's {base.context_length} tokens: "
                    "it no longer sees the oldest turns.",
                )
            )
        return fitting

    @contextlib.asynccontextmanager
    async def _priority(self) -> AsyncIterator[None]:
        """While an answer streams, background training waits, in whichever process it runs."""
        trainer = await self.trainer()
        with trainer.answering():
            yield

    # --- rating and training ----------------------------------------------------------------

    async def rate(
        self, rating: Rating | None, note: str | None = None, correction: str | None = None
    ) -> Recorded:
        """Rate the last finished answer; durable when this returns.

        Raises:
            FeedbackError: nothing was answered yet.
        """
        exchange = self.last_exchange
        if exchange is None:
            raise FeedbackError("There is no answer to rate yet.", hint="Ask something first.")
        workspace = await self.workspace()
        recorded = await asyncio.to_thread(
            workspace.feedback.rate, exchange.id, rating, note=note, correction=correction
        )
        await self.feedback_changed()
        return recorded

    async def feedback_changed(self) -> None:
        """After any change to the feedback: show the buffer, queue a job when it is full."""
        workspace = await self.workspace()
        await self._refresh(workspace)
        if self._train:
            (await self.trainer()).feedback_added()
        elif await asyncio.to_thread(workspace.queue_if_due) is not None:
            await self._refresh(workspace)

    async def trainer(self) -> Trainer:
        """The trainer of this process, made on first use.

        Raises:
            StorageError: the stores cannot be opened.
        """
        workspace = await self.workspace()
        if self._trainer is None:
            from shammah.learning.supervisor import Trainer

            self._trainer = Trainer(
                workspace.database,
                self.paths,
                lambda: self.settings,
                workspace.feedback,
                workspace.library,
                on_change=self._on_change,
                on_notice=lambda kind, text: self._on_notice(Notice(kind, text)),
                on_published=self._published,
            )
        return self._trainer

    async def train_now(self, domain: str | None = None) -> Job:
        """Queue a job with whatever the buffer holds.

        Args:
            domain: what its adapter is for; None leaves it to `training.domain`.

        Raises:
            TrainingError: the buffer holds nothing to train on.
        """
        job = await (await self.trainer()).request("now", domain=domain)
        await self._refresh(await self.workspace())
        return job

    async def rebuild(self) -> Job:
        """Queue a job with every lesson that stands, from the base model.

        Raises:
            TrainingError: there is no lesson, or another job is on its way.
        """
        job = await (await self.trainer()).rebuild()
        await self._refresh(await self.workspace())
        return job

    async def _published(self, adapter: Adapter) -> None:
        """A trained adapter is in the library: the next answer uses it if it was made active."""
        await self._refresh(await self.workspace())

    async def _refresh(self, workspace: Workspace) -> None:
        """Take over what this or another process has changed in the stores."""
        self._buffer_label = (await asyncio.to_thread(workspace.feedback.state)).label
        await self._live.follow(workspace.library)
        self._on_change()

    # --- adapters, model, settings ----------------------------------------------------------

    async def adapter_load(self, name: str | None) -> str | None:
        """Answer with this adapter from the next answer on (None: the base model), and remember it.

        Raises:
            AdapterError: it is not there or fails a check; the running one stays.
        """
        await self.ready()
        chosen = await self._live.use(name, await self._library())
        self._on_change()
        return chosen

    async def adapter_rollback(self) -> str | None:
        """Go back to what answered before the active adapter; its name, None for the base model.

        Raises:
            AdapterError: there is nothing before it.
        """
        await self.ready()
        name = await self._live.rollback(await self._library())
        self._on_change()
        return name

    async def adapter_rename(self, old: str, new: str) -> Adapter:
        """Rename an adapter; if it is the active one it stays so, and answers name it anew.

        Raises:
            AdapterError: it is not there, the new name is taken or no name for a file.
        """
        adapter = await asyncio.to_thread((await self._library()).rename, old, new)
        await self._refresh(await self.workspace())
        return adapter

    async def adapter_answers(self, first: str | None, second: str, limit: int) -> AnswerComparison:
        """What two adapters (None: the base model) answer to the lessons of both, until `limit` of
        the answers differ. The conversation and the adapter in use stay as they are.

        Raises:
            AdapterError: one is not there, or does not fit the live model.
            ModelError: it cannot be loaded.
        """
        from shammah.assistant.comparison import compare_answers, lessons_of

        library = await self._library()
        one = await asyncio.to_thread(library.get, first) if first is not None else None
        two = await asyncio.to_thread(library.get, second)
        if not lessons_of(one, two):
            return AnswerComparison(0, 0, ())
        await self.ready()
        base, engine = self._live.require()
        async with self._priority():
            return await compare_answers(
                base, engine, one, two, limit=limit, system_text=self.settings.chat.system
            )

    async def check_lessons(self, limit: int) -> LessonCheck:
        """Ask the newest trained lessons again, of the adapter in use and of the base model. The
        conversation stays as it is.

        Raises:
            FeedbackError: no lesson was trained yet.
            ModelError: the model cannot be loaded.
        """
        from shammah.assistant.lesson_check import check_lessons, trained_lessons

        workspace = await self.workspace()
        lessons = await asyncio.to_thread(trained_lessons, workspace.feedback)
        if not lessons:
            raise FeedbackError(
                "No lesson was trained yet.", hint="Rate or correct answers; /train status."
            )
        await self.ready()
        base, engine = self._live.require()
        name = engine.active_name
        adapter = await asyncio.to_thread(workspace.library.get, name) if name else None
        async with self._priority():
            return await check_lessons(base, engine, adapter, lessons, limit)

    async def adapter_merge(
        self, names: Sequence[str], options: MergeOptions, *, activate: bool = False
    ) -> Adapter:
        """Combine adapters into a new one; with `activate` it answers from the next answer on.

        Raises:
            UsageError: the options do not go together, or not with these adapters.
            AdapterError: one cannot be used; nothing was changed.
        """
        workspace = await self.workspace()
        adapter = await asyncio.to_thread(workspace.merge, names, options)
        if activate:
            await self.adapter_load(adapter.name)
        await (await self.trainer()).prune()
        return adapter

    async def adapter_without(self, name: str, number: int, *, activate: bool = False) -> Adapter:
        """Publish an adapter without one of its rounds; with `activate` it answers from now on.

        Raises:
            AdapterError: there is no such adapter or round; nothing was changed.
        """
        workspace = await self.workspace()
        adapter = await asyncio.to_thread(workspace.without_round, name, number)
        if activate:
            await self.adapter_load(adapter.name)
        return adapter

    async def adapter_import(self, folder: Path) -> Adapter:
        """Take an adapter in PEFT's layout into the library, without making it the active one.

        Raises:
            AdapterError: it does not fit the live model, or fails a check.
        """
        await self.ready()
        adapter = await self._live.import_peft(folder, await self._library())
        await (await self.trainer()).prune()
        return adapter

    async def load_model(self, name: str) -> None:
        """Answer with another base model; the conversation goes on.

        Raises:
            ModelError: it cannot be loaded; the present one stays.
        """
        if self._loading is not None:
            await asyncio.gather(asyncio.shield(self._loading), return_exceptions=True)
        model = self.settings.model.model_copy(update={"name": name})
        settings = self.settings.model_copy(update={"model": model})
        async with self._answer_lock:
            loading = asyncio.create_task(self._load(settings))
            await loading
            self._loading, self.settings = loading, settings
            (await self.workspace()).apply(settings)
        self._on_change()

    async def model_info(self) -> ModelDescription:
        """What the live model is.

        Raises:
            ModelError: it cannot be loaded.
        """
        await self.ready()
        return await self._live.info(self.settings.lora)

    async def set_setting(self, key: str, text: str) -> tuple[Any, str]:
        """Change one setting in the file and, where it can be, live.

        Returns:
            The value, and a remark on when it takes effect.

        Raises:
            ConfigError: unknown key or unfit value; the file stays as it was.
        """
        from shammah.settings_file import set_value

        settings, value = await asyncio.to_thread(set_value, self.paths.config_file, key, text)
        section = key.partition(".")[0]
        if section == "model":
            return value, "It takes effect at the next start."
        self.settings = settings.model_copy(update={"model": self.settings.model})
        if key == "chat.system":
            self.set_system(self.settings.chat.system)
        (await self.workspace()).apply(self.settings)
        await self.feedback_changed()
        return value, (
            "The next training job uses it." if section in ("lora", "training") else "In effect."
        )

    # --- behind the prompt ------------------------------------------------------------------

    async def _open(self) -> Workspace:
        def work() -> Workspace:
            from shammah.assistant.workspace import Workspace

            return Workspace(self.settings, self.paths)

        return await asyncio.to_thread(work)

    async def _open_export(self) -> None:
        self._export = await asyncio.to_thread(open_export, self.settings.tracking, self.paths)

    async def _load(self, settings: Settings) -> None:
        await self._live.load(settings.model, self._library())
        self._on_change()

    async def _library(self) -> AdapterLibrary:
        return (await self.workspace()).library

    async def _run_behind(self) -> None:
        """Start the trainer, then follow what other processes change."""
        workspace = await self.workspace()
        version = await asyncio.to_thread(workspace.database.data_version)
        if self._train:
            await (await self.trainer()).start()
        await self._refresh(workspace)
        if self._loading is not None:
            await asyncio.shield(self._loading)
        while True:
            if not self.answering:
                await self._live.look_at_lessons(self.settings.adapters, workspace.library)
            await asyncio.sleep(WATCH_SECONDS)
            newest = await asyncio.to_thread(workspace.database.data_version)
            if newest != version:
                version = newest
                await self._refresh(workspace)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """A task that nobody awaits: its failure becomes a notice, its traceback a log entry."""
        try:
            await work
        except ShammahError as error:
            self._on_notice(Notice("error", str(error)))
        except Exception as error:
            log.exception("a background task failed")
            self._on_notice(Notice("error", f"Something went wrong behind the chat: {error}"))
