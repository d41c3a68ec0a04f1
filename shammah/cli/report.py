"""`shammah report`: a run, an adapter or an evaluation as one file to hand on. Needs no model."""

from __future__ import annotations

import re
import webbrowser
from argparse import Namespace
from contextlib import closing
from pathlib import Path

from shammah.cli.context import open_workspace
from shammah.cli.output import emit, say, tell
from shammah.errors import UsageError
from shammah.files import write_atomic
from shammah.reporting.contents import Contents
from shammah.reporting.gathering import Stores, gather
from shammah.reporting.page import page
from shammah.tracking.loggers.store import open_store


def run(options: Namespace) -> int:
    with (
        open_workspace(options) as workspace,
        closing(open_store(workspace.paths.data)) as runs,
    ):
        contents = gather(
            options.name,
            Stores(runs, workspace.library, workspace.paths),
            lessons=not options.no_lessons,
        )
    file = _file(options.out, contents)
    pictures: list[Path] = []
    if options.png:
        from shammah.reporting.pictures import write_pictures

        pictures = write_pictures(contents, Path(options.png).expanduser().absolute())
    write_atomic(file, page(contents))
    if options.json:
        emit(
            {
                "file": file,
                "pictures": pictures,
                "kind": contents.kind,
                "name": contents.name,
                "run": contents.run,
                "adapter": contents.adapter,
                "curves": [each.metric for each in contents.charts],
                "evaluations": [each.folder for each in contents.evaluations],
                "lessons": len(contents.lessons),
                "learned": sum(bool(each.learned) for each in contents.lessons),
                "troubles": contents.troubles,
            }
        )
    else:
        say("\n".join(map(str, [file, *pictures])))
        if contents.lessons:
            tell("It quotes lessons: read it before you hand it on, or leave them out with "
                 "--no-lessons.")  # fmt: skip
    if options.open and not webbrowser.open(file.as_uri()):
        tell("No browser was found to open it with.")
    return 0


def _file(out: str | None, contents: Contents) -> Path:
    if out is None:
        return Path.cwd() / f"report-{re.sub(r'[^A-Za-z0-9._-]+', '-', contents.name)}.html"
    file = Path(out).expanduser().absolute()
    if file.is_dir():
        raise UsageError(f"{file} is a folder.", hint="--out names the file: report.html.")
    return file
