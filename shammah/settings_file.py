"""The TOML file of settings: read it, change one value and keep the rest as the user wrote it.

Names, types and ranges are `settings`' business. tomlkit is imported only to write.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from shammah.errors import ConfigError
from shammah.files import write_atomic
from shammah.settings import Section, Settings

TRUE = ("true", "on", "yes", "1")
FALSE = ("false", "off", "no", "0")
NONE = ("none", "")


def load(path: Path) -> Settings:
    """The settings of a file; the defaults where there is none.

    Raises:
        ConfigError: the file cannot be read, is not TOML (with line and column), or holds an
            unknown key, a wrong type or a value out of range.
    """
    return Settings.from_dict(_parse(_read(path), path), source=str(path))


def set_value(path: Path, key: str, text: str) -> tuple[Settings, Any]:
    """Change one setting in the file, keeping its comments, order and line ends.

    The whole is validated before anything is written; the file is replaced atomically, and made
    if it is missing. A file whose only fault is this very value is mended by it.

    Args:
        path: the TOML file.
        key: dotted, such as `lora.rank`.
        text: the value as typed: `true`, `8`, `1e-4`, `q_proj,v_proj`, or `none` for a setting
            that may be absent, which removes its line.

    Returns:
        All settings as they are now, and this one's value.

    Raises:
        ConfigError: no such key, or a value of the wrong type or range; nothing was written.
        StorageError: the file cannot be written.
    """
    import tomlkit
    from tomlkit.items import AbstractTable

    value = parse_value(key, text)
    content = _read(path)
    _parse(content, path)  # tomllib's words for a syntax error are the better ones.
    if content and not content.endswith("\n"):
        content += "\n"
    document = tomlkit.parse(content)
    section, name = key.split(".", 1)
    if value is None:
        if section in document:
            document[section].pop(name, None)
    else:
        if section not in document:
            if document.as_string().strip():
                document.add(tomlkit.nl())  # An empty line above the new table.
            document.add(section, tomlkit.table())
        table = document[section]
        if not isinstance(table, AbstractTable | tomlkit.container.OutOfOrderTableProxy):
            raise ConfigError(f"{path}: {section} is a value there, not a table of settings.")
        table[name] = value
    written = document.as_string()
    settings = Settings.from_dict(_parse(written, path), source=str(path))
    target = path.resolve() if path.is_symlink() else path
    write_atomic(target, written.encode())
    return settings, settings.get(key)


def parse_value(key: str, text: str) -> Any:
    """What a typed text means for a setting: a bool, int, float, list, string or None.

    Raises:
        ConfigError: there is no such key, or the text is no value of its type.
    """
    Settings().get(key)
    section, name = key.split(".", 1)
    model: type[Section] = type(getattr(Settings(), section))
    kinds = _kinds(model.model_fields[name].annotation)
    text = text.strip()
    if type(None) in kinds and text.lower() in NONE:
        return None
    if bool in kinds:
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise _mistyped(key, text, "true or false")
    if int in kinds:
        try:
            return int(text.replace("_", ""))
        except ValueError:
            raise _mistyped(key, text, "a whole number") from None
    if float in kinds:
        try:
            return float(text)
        except ValueError:
            raise _mistyped(key, text, "a number") from None
    literals = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    if list in [get_origin(kind) for kind in kinds] and text not in literals:
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [part.strip().strip("\"'") for part in inner.split(",") if part.strip()]
    return text


def _kinds(annotation: Any) -> list[Any]:
    """The branches of a union, or the one type."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (Literal, list) or not arguments:
        return [annotation]
    return [kind for argument in arguments for kind in _kinds(argument)]


def _mistyped(key: str, text: str, wanted: str) -> ConfigError:
    return ConfigError(f"{key} = {text!r}: should be {wanted}.")


def _read(path: Path) -> str:
    """The text of the file without a byte order mark, line ends as they are; empty if missing."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text (byte {error.start}).", hint="Save it as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error


def _parse(content: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r" \(at (line \d+, column \d+|end of document)\)$", message)
        what = message[: found.start()] if found else message
        if found and found.group(1) != "end of document":
            where = found.group(1)
        else:
            lines = content.split("\n")
            where = f"line {len(lines)}, column {len(lines[-1]) + 1} (its end)"
        raise ConfigError(
            f"{path}: {where}: {what}.", hint="Mend that line; nothing was changed."
        ) from error
