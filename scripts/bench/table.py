"""What every bench ends with: a table of rows, ratios between them, and both as JSON if wanted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--json FILE` and `--quick`, which all benches have."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write rows and ratios here")
    parser.add_argument("--quick", action="store_true", help="less work, less certain figures")


def report(
    title: str,
    rows: Sequence[Row],
    ratios: Mapping[str, float],
    *,
    targets: Mapping[str, str] | None = None,
    json_file: Path | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print a table and the ratios; write `{"rows": [...], "ratios": {...}}` if a file is given.

    Args:
        rows: dictionaries with the same keys in the same order.
        targets: what a ratio should be, in words (`at least 3`).
        more: what else the file is to hold.
    """
    print(f"\n{title}")
    if rows:
        names = list(rows[0])
        cells = [names, *([_text(row.get(name)) for name in names] for row in rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
        for number, line in enumerate(cells):
            pairs = zip(line, widths, strict=True)
            print(
                "  ".join(
                    text.ljust(width) if column == 0 else text.rjust(width)
                    for column, (text, width) in enumerate(pairs)
                )
            )
            if number == 0:
                print("  ".join("-" * width for width in widths))
    for name, value in ratios.items():
        wanted = f"  ({targets[name]})" if targets and name in targets else ""
        print(f"{name}: {_text(value)}{wanted}")
    if json_file is not None:
        content = {"rows": [dict(row) for row in rows], "ratios": dict(ratios), **(more or {})}
        json_file.write_text(json.dumps(content, indent=1) + "\n")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
