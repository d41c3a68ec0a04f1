"""A conversation as a file to keep: Markdown to read, JSON to process."""

from __future__ import annotations

import json
from pathlib import Path

from shammah.files import write_atomic
from shammah.messages import Conversation, to_dicts

HEADINGS = {"system": "System", "user": "You", "assistant": "Shammah"}


def write_transcript(conversation: Conversation, path: Path) -> Path:
    """Write the conversation; `.json` gives `{"messages": [...]}`, anything else Markdown.

    Raises:
        StorageError: the file cannot be written.
    """
    path = path.expanduser().absolute()
    if path.suffix == ".json":
        text = json.dumps({"messages": to_dicts(conversation)}, ensure_ascii=False, indent=2) + "\n"
    else:
        text = "\n".join(f"## {HEADINGS[m.role]}\n\n{m.text}\n" for m in conversation)
    write_atomic(path, text)
    return path
