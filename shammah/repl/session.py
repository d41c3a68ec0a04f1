"""The chat itself: lines in, answers and notices out, one thing at a time where that matters.

Questions wait for each other; ratings and looks at things do not, so that an answer can be rated
while the next one streams. Knows nothing of keys or of drawing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from shammah.assistant import Assistant, Notice, Status
from shammah.assistant.answers import AnswerHandle
from shammah.errors import ShammahError
from shammah.paths import Paths
from shammah.repl import wording
from shammah.repl.commands import COMMANDS
from shammah.repl.editor import edit
from shammah.repl.registry import Chat, Command, find
from shammah.repl.screen import Screen
from shammah.repl.text import harmless, one_line, styled, wrapped
from shammah.repl.toolbar import moving, toolbar
from shammah.repl.view import AnswerView, PlainView
from shammah.settings import Settings

log = logging.getLogger("shammah")

REFRESH_SECONDS = 0.25
"""How often the toolbar is drawn while something in it moves."""

STOP_SECONDS = 2.0
"""How long a stopped answer gets to end when the chat is left."""

THOUGHT = 90
"""Characters of a thought that are shown under its answer."""

STYLES = {"info": "", "success": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True, slots=True)
class Work:
    """A line and what it asks for."""

    line: str
    run: Callable[[], Awaitable[None]]


class Session:
    """One chat, from the first prompt to leaving.

    Args:
        screen: where it is shown.
        leave: ends the chat.
        echo: what to show of a line when its turn has come.
        train: run queued training jobs behind the chat.
        adapter: answer with this adapter whatever is active; `none` for the base model.
    """

    def __init__(
        self,
        settings: Settings,
        paths: Paths,
        screen: Screen,
        *,
        leave: Callable[[], None],
        echo: Callable[[str], str] | None = None,
        train: bool = True,
        adapter: str | None = None,
    ) -> None:
        self.screen = screen
        self.exit_code = 0
        self.assistant = Assistant(
            settings,
            paths,
            on_notice=self._notice,
            on_change=screen.redraw,
            train=train,
            adapter=adapter,
        )
        self.chat = Chat(
            assistant=self.assistant,
            screen=screen,
            paths=paths,
            answer=self._answer,
            edit=lambda start: edit(screen, start),
            leave=leave,
        )
        self._echo = echo
        self._train = train
        self._turns: asyncio.Queue[Work] = asyncio.Queue()
        self._at_once: asyncio.Queue[Work] = asyncio.Queue()
        self._answering: AnswerHandle | None = None
        self._turn: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # --- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin loading and working; returns at once."""
        await self.assistant.start()
        self._tasks = [
            asyncio.create_task(self._work_turns()),
            asyncio.create_task(self._work_at_once()),
        ]
        self._tasks.append(asyncio.create_task(self._offer_to_resume()))
        if self.screen.interactive:
            self._tasks.append(asyncio.create_task(self._keep_toolbar_moving()))
            self._tasks.append(asyncio.create_task(asyncio.to_thread(_warm_up)))

    async def close(self) -> bool:
        """Stop everything; a running training job is checkpointed.

        Returns:
            False where the model was still loading. Its thread cannot be stopped: leave at once.
        """
        turn = self._turn
        if turn is not None and self._answering is not None:
            # What was said so far is kept: the answer ends within a token and is stored.
            self._answering.stop()
            if self.assistant.status.model_state == "ready":
                await asyncio.wait([turn], timeout=STOP_SECONDS)
        tasks = [*self._tasks, *([turn] if turn is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self.screen.drained()
        if self.assistant.status.model_state == "loading":
            with contextlib.suppress(ShammahError):
                if self._train:
                    await (await self.assistant.trainer()).stop(checkpoint=True)
            return False
        await self.assistant.close()
        return True

    async def idle(self) -> None:
        """Wait until everything submitted so far is done."""
        await self._at_once.join()
        await self._turns.join()

    # --- lines ------------------------------------------------------------------------------

    def submit(self, line: str) -> None:
        """Take a line: a command where it begins with a slash, else a question."""
        line = line.rstrip()
        if not line.strip():
            return
        if not line.startswith("/"):
            question = line.strip()
            self._turns.put_nowait(Work(line, lambda: self._ask(question)))
        else:
            name, argument = split_command(line)
            try:
                command = find(COMMANDS, name)
            except ShammahError as error:
                unknown = error
                self._at_once.put_nowait(Work(line, lambda: self._refuse(unknown)))
                return
            if command.name == "/quit":
                self.chat.leave()
                return
            queue = self._turns if command.in_turn else self._at_once
            queue.put_nowait(Work(line, lambda: self._command(command, argument)))
        self.screen.redraw()

    def interrupt(self, *, empty: bool = True) -> bool:
        """Ctrl-C: stop the answer; where none is on its way and the line was empty, say how to
        leave. Returns whether there was an answer to stop."""
        if self._answering is not None:
            self._answering.stop()
            if self.assistant.status.model_state == "loading" and self._turn is not None:
                self._turn.cancel()
            return True
        if empty and self.screen.interactive:
            self._note("Ctrl-D or /quit leaves.", "dim")
        return False

    @property
    def answering(self) -> bool:
        return self._answering is not None

    def toolbar(self) -> str:
        """The line at the bottom."""
        return toolbar(self.assistant.status, answering=self.answering, waiting=self._turns.qsize())

    # --- work -------------------------------------------------------------------------------

    async def _work_turns(self) -> None:
        while True:
            work = await self._turns.get()
            # A setting changed or an adapter loaded just before holds for the question.
            await self._at_once.join()
            self._turn = asyncio.create_task(self._do(work))
            try:
                await asyncio.wait([self._turn])
            finally:
                self._turns.task_done()
                self._turn = None

    async def _work_at_once(self) -> None:
        while True:
            work = await self._at_once.get()
            try:
                await self._do(work)
            finally:
                self._at_once.task_done()

    async def _do(self, work: Work) -> None:
        if self._echo is not None:
            self.screen.print(self._echo(work.line))
        try:
            await work.run()
        except ShammahError as error:
            self._fail(error)
        except Exception as error:
            log.exception("a line could not be worked on")
            self._fail(unexpected(error, self.chat.paths))

    async def _ask(self, question: str) -> None:
        await self._answer(self.assistant.ask(question))

    async def _answer(self, handle: AnswerHandle) -> None:
        chat = self.assistant.settings.chat
        view: AnswerView | PlainView
        if self.screen.interactive:
            view = AnswerView(self.screen, markdown=chat.markdown, theme=chat.code_theme)
        else:
            view = PlainView(self.screen)
        self._answering = handle
        try:
            async for piece in handle:
                view.feed(piece)
        finally:
            self._answering = None
            answer = handle.answer
            view.finish(cut=handle.stopped)
        if answer is not None and answer.thinking:
            self._note(f"Thought: {one_line(answer.thinking, THOUGHT)}", "dim")
        if answer is not None and handle.choice.route is not None:
            self._note(wording.routed(handle.choice.route), "dim")
        if answer is not None and answer.stop_reason == "length":
            limit = f"The answer reached generation.max_tokens ({answer.tokens}) and ends here."
            self._note(limit, "dim")

    async def _command(self, command: Command, argument: str) -> None:
        await command.run(self.chat, argument)
        self.screen.gap()

    async def _offer_to_resume(self) -> None:
        """Say so where an earlier chat left a training job unfinished."""
        began = datetime.now(UTC)
        try:
            queue = (await self.assistant.workspace()).queue
            job = await asyncio.to_thread(queue.resumable)
        except ShammahError as error:
            log.warning("no look at interrupted jobs: %s", error)
            return
        # One that is found to be interrupted only now is told of by the trainer.
        if job is not None and job.finished_at is not None and job.finished_at < began:
            lessons = "1 lesson" if job.examples == 1 else f"{job.examples} lessons"
            self._note(
                f"Training job {job.id} ({lessons}) was interrupted when the chat ended. "
                "/train resume goes on with it.",
                STYLES["warning"],
            )

    async def _refuse(self, error: ShammahError) -> None:
        raise error

    # --- what is shown ----------------------------------------------------------------------

    def _fail(self, error: ShammahError) -> None:
        self.exit_code = self.exit_code or error.exit_code
        self._note(error_text(error), "red")

    def _notice(self, notice: Notice) -> None:
        self._note(harmless(notice.text), STYLES[notice.kind])

    def _note(self, text: str, style: str) -> None:
        self.screen.note(self._styled(text, style))

    def _styled(self, text: str, style: str) -> str:
        if self.screen.interactive and not (style and self.screen.coloured):
            return wrapped(text)
        return styled(text, style, coloured=self.screen.coloured) if style else text

    async def _keep_toolbar_moving(self) -> None:
        before: Status | None = None
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            status = self.assistant.status
            if status != before or moving(status, answering=self.answering):
                before = status
                self.screen.redraw()


def split_command(line: str) -> tuple[str, str]:
    """A command's name and the rest of the line, which may have several lines."""
    name, *rest = line.split(maxsplit=1)
    return name, rest[0].strip() if rest else ""


def error_text(error: ShammahError) -> str:
    """An error as the user reads it: what happened, and what to do."""
    return harmless(f"{error.message}\n{error.hint}" if error.hint else error.message)


def unexpected(error: Exception, paths: Paths) -> ShammahError:
    """A fault of the program as the user reads it; the log has the traceback."""
    return ShammahError(
        f"Something went wrong ({type(error).__name__}); this is a fault of the program.",
        hint=f"{paths.log} says more.",
    )


def _warm_up() -> None:
    """Import what the first answer will be shown with, while the user types."""
    import rich.table  # noqa: F401

    from shammah.repl.markdown import render_markdown

    render_markdown("`a`\n\n```python\n1\n```", theme="monokai", coloured=False, width=40)
