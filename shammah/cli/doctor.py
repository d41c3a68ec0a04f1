"""`shammah doctor`: is everything in place?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from shammah.cli.context import log_changes, paths_of, settings_of, start_log
from shammah.cli.output import coloured, emit, say
from shammah.errors import ShammahError
from shammah.paths import Paths
from shammah.repl.text import harmless, size, styled
from shammah.settings import Settings
from shammah.version import VERSION

LEAST_DISK = 1_000_000_000
LEAST_MEMORY = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `hint` says what to do where it is not `ok`."""

    name: str
    state: Literal["ok", "warning", "failed"]
    detail: str
    hint: str | None = None


def run(options: Namespace) -> int:
    """Print every check; 0 unless one failed."""
    checks = list(examine(options))
    if options.json:
        emit([asdict(check) for check in checks])
    else:
        for check in checks:
            say(_line(check))
    return int(any(check.state == "failed" for check in checks))


def examine(options: Namespace) -> Iterator[Check]:
    """Every check, from the ground up."""
    yield Check("shammah", "ok", VERSION)
    yield Check("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield from _torch()
    paths: Paths | None = None
    settings = Settings()
    try:
        paths = paths_of(options)
        settings = settings_of(paths, log_changes(options))
        start_log(paths, settings)
        found = paths.config_file.is_file()
        yield Check(
            "settings", "ok", f"{paths.config_file}{'' if found else ' (not there: defaults)'}"
        )
    except ShammahError as error:
        yield _failed("settings", error)
        paths = paths or Paths.default()
    yield from _folder(paths)
    yield _database(paths)
    yield _memory()
    yield _model(settings)


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "failed", str(error), "Install Shammah again.")
        return
    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    from shammah.models.device import choose_device

    device = choose_device("auto")
    if device == "cuda":
        yield Check("device", "ok", f"cuda: {torch.cuda.get_device_name()}")
    elif device == "mps":
        yield Check("device", "ok", "mps")
    else:
        fast = [
            name
            for name, there in (
                ("AMX", _has(torch.cpu, "_is_amx_tile_supported")),
                ("AVX512-BF16", _has(torch.cpu, "_is_avx512_bf16_supported")),
            )
            if there
        ]
        bf16 = f"bf16 is fast ({', '.join(fast)})" if fast else "bf16 is not fast here"
        yield Check("device", "ok", f"cpu, {os.cpu_count()} processors, {bf16}")


def _has(module: object, name: str) -> bool:
    """What a probe of torch says; false where this torch lacks it."""
    probe: Callable[[], bool] | None = getattr(module, name, None)
    return bool(probe and probe())


def _folder(paths: Paths) -> Iterator[Check]:
    try:
        paths.ensure()
        probe = paths.data / f".doctor-{os.getpid()}"
        probe.touch(mode=0o600)
        probe.unlink()
    except (ShammahError, OSError) as error:
        hint = "Check its permissions, or set SHAMMAH_HOME to a folder of yours."
        yield Check("data folder", "failed", str(error), hint)
        return
    yield Check("data folder", "ok", str(paths.data))
    free = shutil.disk_usage(paths.data).free
    state: Literal["ok", "warning"] = "ok" if free >= LEAST_DISK else "warning"
    hint_or_none = None if state == "ok" else "Free some space: adapters and checkpoints need it."
    yield Check("free disk", state, size(free), hint_or_none)


def _database(paths: Paths) -> Check:
    if not paths.database.exists():
        return Check("database", "ok", "none yet; the first chat makes it")
    try:
        from shammah.storage.database import Database

        Database(paths.database).close()
    except ShammahError as error:
        return _failed("database", error)
    return Check("database", "ok", f"{paths.database}, {size(paths.database.stat().st_size)}")


def _memory() -> Check:
    import psutil

    free = psutil.virtual_memory().available
    if free >= LEAST_MEMORY:
        return Check("free memory", "ok", size(free))
    return Check("free memory", "warning", size(free), "Close what you do not need.")


def _model(settings: Settings) -> Check:
    from shammah.models.find import find_model

    try:
        source = find_model(settings.model.name)
    except ShammahError as error:
        return _failed("model", error)
    if source.path is None:
        return Check("model", "ok", f"{source.name}, from the Hub")
    if not any(source.path.glob("*.safetensors")):
        return Check(
            "model", "failed", f"{source.path} has no weights.", "Choose another model.name."
        )
    return Check("model", "ok", f"{source.name} ({source.path})")


def _failed(name: str, error: ShammahError) -> Check:
    return Check(name, "failed", error.message, error.hint)


def _line(check: Check) -> str:
    style = {"ok": "green", "warning": "yellow", "failed": "red"}[check.state]
    mark = styled(f"{check.state:8}", style, coloured=coloured())
    hint = f"\n{'':22}{check.hint}" if check.hint else ""
    return mark + harmless(f"{check.name:12}  {check.detail}{hint}")
