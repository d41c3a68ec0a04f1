"""`shammah adapters`: the library of what was learned. Needs no model, but to import."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from shammah.assistant import Assistant
from shammah.assistant.views import AdapterComparison, AnswerComparison
from shammah.cli.context import log_changes, open_workspace, paths_of, settings_of, start_log
from shammah.cli.output import coloured, emit, say, tell
from shammah.errors import AdapterError, ModelError, ModelNotFoundError, UsageError
from shammah.repl import wording
from shammah.repl.adapter_commands import ANSWERS
from shammah.repl.options import merge_options, whole_number


def list_all(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        rows = workspace.adapters()
    if options.json:
        emit(rows)
    elif rows:
        say(wording.adapters_table(rows, coloured=coloured()))
    else:
        tell("No adapters yet: the first one comes with the first training job.")
    return 0


def show(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        adapter = workspace.library.get(options.name)
    if options.json:
        about = adapter.require_metadata().model_dump(mode="json")
        emit({**about, "path": adapter.path, "size": adapter.size})
    else:
        say(wording.adapter_details(adapter, coloured=coloured()))
    return 0


def compare(options: Namespace) -> int:
    limit = whole_number("answers", options.answers)
    with open_workspace(options) as workspace:
        found = workspace.compare(options.name, options.other)
    if limit != 0:
        try:
            answers = asyncio.run(_answers(options, found, limit or ANSWERS))
            found = replace(found, answers=answers)
        except (AdapterError, ModelError) as error:
            # All but the answers is known without the model.
            tell(wording.no_answers(error))
    if options.json:
        emit(found)
    else:
        say(wording.adapter_comparison(found, coloured=coloured()))
        if found.answers is not None:
            say(wording.answer_comparison(found, found.answers, coloured=coloured()))
    return 0


async def _answers(options: Namespace, found: AdapterComparison, limit: int) -> AnswerComparison:
    paths = paths_of(options)
    settings = settings_of(paths, log_changes(options))
    assistant = Assistant(settings, paths, train=False, adapter="none")
    try:
        first = found.first.info.name if found.first else None
        return await assistant.adapter_answers(first, found.second.info.name, limit)
    finally:
        await assistant.close()


def merge(options: Namespace) -> int:
    wanted = merge_options(
        {key: getattr(options, key) for key in ("weights", "method", "rank", "density", "name")}
    )
    with open_workspace(options) as workspace:
        adapter = workspace.merge(options.names, wanted)
        if options.activate:
            workspace.select_adapter(adapter.name)
        keep = workspace.settings.adapters.max_kept
        removed = workspace.prune(keep) if keep else []
    if removed:
        from shammah.learning.upkeep import removed_text

        tell(removed_text(removed, keep))
    warning = wording.inexact(adapter)
    if warning:
        tell(warning)
    if options.json:
        about = adapter.require_metadata().model_dump(mode="json")
        emit({**about, "active": options.activate, "path": adapter.path, "size": adapter.size})
        return 0
    say(wording.merged(adapter))
    if options.activate:
        say(f"{adapter.name} answers from now on.")
    return 0


def without(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        adapter = workspace.without_round(options.name, options.round)
        if options.activate:
            workspace.select_adapter(adapter.name)
    text = wording.without_round(adapter, active=options.activate)
    return _done(options, text, adapter.name)


def load(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        adapter = workspace.select_adapter(options.name)
    assert adapter is not None
    return _done(options, f"{adapter.name} answers from now on.", adapter.name)


def unload(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        workspace.select_adapter(None)
    return _done(options, "The base model answers from now on, without an adapter.", None)


def rollback(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        fingerprint = workspace.fingerprint()
        if fingerprint is None:
            raise ModelNotFoundError(
                f"{workspace.settings.model.name} is not on this disk yet.",
                hint="Chat with it once; then it is.",
            )
        name = workspace.library.rollback(fingerprint)
    return _done(options, f"{name or 'The base model'} answers again.", name)


def rename(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        adapter = workspace.library.rename(options.old, options.new)
    return _done(options, f"{options.old} is now {adapter.name}.", adapter.name)


def domain(options: Namespace) -> int:
    if options.domain is not None and options.clear:
        raise UsageError("Give a domain or --clear, not both.")
    with open_workspace(options) as workspace:
        if options.domain is not None or options.clear:
            adapter = workspace.library.set_domain(options.name, options.domain)
        else:
            adapter = workspace.library.get(options.name)
    if options.json:
        emit({"adapter": adapter.name, "domain": adapter.require_metadata().domain})
    else:
        say(wording.domain_set(adapter))
    return 0


def delete(options: Namespace) -> int:
    with open_workspace(options) as workspace:
        workspace.library.delete(options.name)
    return _done(options, f"{options.name} is deleted.", options.name)


def prune(options: Namespace) -> int:
    keep = whole_number("keep", options.keep, 1)
    with open_workspace(options) as workspace:
        removed = workspace.prune(keep, dry_run=options.dry_run)
        left = len(workspace.library.list()) - len(removed) * options.dry_run
    if options.json:
        emit({"removed": removed, "kept": left, "dry_run": options.dry_run})
    else:
        say(wording.pruned(removed, left, dry_run=options.dry_run))
    return 0


def export(options: Namespace) -> int:
    from shammah.adapters.peft_format import export_peft

    with open_workspace(options) as workspace:
        adapter = workspace.library.get(options.name)
        folder = export_peft(
            adapter, Path(options.folder).expanduser(), with_lessons=options.with_lessons
        )
    if options.json:
        emit({"adapter": adapter.name, "folder": folder})
    else:
        say(str(folder))
        tell(f"{adapter.name} is exported in PEFT's layout.")
    return 0


def take(options: Namespace) -> int:
    return asyncio.run(_take(options))


async def _take(options: Namespace) -> int:
    paths = paths_of(options)
    settings = settings_of(paths, log_changes(options))
    start_log(paths, settings)
    # The shapes that the adapter must fit are those of the live model.
    assistant = Assistant(
        settings,
        paths,
        train=False,
        adapter="none",
        on_notice=lambda notice: tell(notice.text),
    )
    await assistant.start()
    try:
        folder = await asyncio.to_thread(Path(options.folder).expanduser)
        adapter = await assistant.adapter_import(folder)
    finally:
        await assistant.close()
    return _done(options, f"Imported as {adapter.name}.", adapter.name)


def _done(options: Namespace, text: str, name: str | None) -> int:
    if options.json:
        emit({"adapter": name})
    else:
        say(text)
    return 0
