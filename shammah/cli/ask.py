"""`shammah ask`: a question in, the answer alone on stdout."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from shammah.assistant import Assistant, Notice
from shammah.assistant.answers import AnswerHandle
from shammah.cli.context import model_changes, paths_of, settings_of, start_log
from shammah.cli.output import emit, fail, tell
from shammah.errors import ContextTooLongError, GenerationError, ShammahError, UsageError
from shammah.repl.leaving import leave_at_once
from shammah.repl.lines import input_lines
from shammah.repl.text import harmless

if TYPE_CHECKING:
    from shammah.paths import Paths
    from shammah.settings import Settings

INTERRUPTED = 130


def run(options: Namespace) -> int:
    paths = paths_of(options)
    changes = {
        **model_changes(options),
        "chat.system": options.system,
        "generation.max_tokens": options.max_tokens,
        "generation.temperature": options.temperature,
        "generation.seed": options.seed,
    }
    settings = settings_of(paths, changes)
    start_log(paths, settings)
    text = None
    if options.lines:
        check_lines(options)
    else:
        text = question(options)
    return asyncio.run(_run(settings, paths, options, text))


def question(options: Namespace) -> str:
    """The question of the arguments, followed by what is piped in.

    Raises:
        UsageError: there is neither.
    """
    asked = " ".join(options.question).strip()
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read().strip()
    whole = f"{asked}\n\n{piped}" if asked and piped else asked or piped
    if not whole:
        raise UsageError("There is no question.", hint='Write shammah ask "..." or pipe one in.')
    return whole


def check_lines(options: Namespace) -> None:
    """Whether `--lines` can do anything.

    Raises:
        UsageError: there is a question beside the lines, or no input.
    """
    if options.question:
        raise UsageError("--lines takes its questions from the input, not from the arguments.")
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("--lines reads its questions from the input; nothing is piped in.")


async def _lines() -> AsyncIterator[str]:
    """Each line of the input that is not blank, as it comes."""
    async for line in input_lines():
        if line.strip():
            yield line.strip()


async def _one(text: str) -> AsyncIterator[str]:
    yield text


async def _run(settings: Settings, paths: Paths, options: Namespace, text: str | None) -> int:
    """Answer one question, or each line where there is none."""
    assistant = Assistant(settings, paths, on_notice=_notice, train=False, adapter=options.adapter)
    questions = _lines() if text is None else _one(text)
    code = 0
    await assistant.start()
    try:
        async for text in questions:
            assistant.clear()
            handle = assistant.ask(text)
            try:
                await _show(handle, text, options)
            except (ContextTooLongError, GenerationError) as error:
                # One question that cannot be answered does not keep the others from it.
                if not options.lines:
                    raise
                code = error.exit_code
                _report(error, text, options)
    except asyncio.CancelledError:
        if assistant.status.model_state == "loading":
            leave_at_once(INTERRUPTED)
        raise
    finally:
        await assistant.close()
    return code


async def _show(handle: AnswerHandle, text: str, options: Namespace) -> None:
    terminal = sys.stdout.isatty()
    last = ""
    async for piece in handle:
        if not options.json:
            shown = harmless(piece) if terminal else piece
            sys.stdout.write(shown)
            sys.stdout.flush()
            last = piece or last
    if options.json:
        emit(answer_record(text, handle))
    elif not last.endswith("\n"):
        print(flush=True)


def answer_record(text: str, handle: AnswerHandle) -> dict[str, Any]:
    """An answer as a JSON object."""
    answer = handle.answer
    assert answer is not None
    near = handle.choice.nearness
    return {
        "question": text,
        "answer": answer.text,
        "thinking": answer.thinking,
        "adapter": answer.adapter,
        "domain": handle.choice.route.domain if handle.choice.route else None,
        "similarity": round(handle.choice.route.similarity, 4) if handle.choice.route else None,
        "nearness": round(near.lesson, 4) if near is not None else None,
        "nearness_to_others": round(near.other, 4) if near is not None else None,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 4),
        "prompt_tokens": answer.prompt_tokens,
        "first_token_seconds": answer.first_token_seconds,
        "tokens_per_second": answer.tokens_per_second,
        "stop_reason": answer.stop_reason,
        "model": handle.exchange.model if handle.exchange else None,
        "exchange": handle.exchange.id if handle.exchange else None,
    }


def _report(error: ShammahError, text: str, options: Namespace) -> None:
    if options.json:
        emit({"question": text, "error": error.message})
    fail(error)


def _notice(notice: Notice) -> None:
    tell(notice.text)
