"""Settings: the TOML file, changing it in place, and the example that documents it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from shammah.errors import ConfigError
from shammah.settings import PRESETS, Settings, keys
from shammah.settings_file import load, set_value

EXAMPLE = Path(__file__).parent.parent / "config.example.toml"


# Reading


def test_missing_file_means_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "config.toml") == Settings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[lora]\nrank = \n", "line 2, column 8"),
        ("[lora]\nrank = 8\nrank = 9", "line 3"),
        ("[lora", "line 1, column 6"),
        ("[lora]\nrnk = 8", "no setting 'lora.rnk'. Did you mean lora.rank?"),
        ("[lore]\nrank = 8", "no setting 'lore'. Did you mean lora?"),
        ("[lora]\nrank = 0", "lora.rank = 0"),
        ("[lora]\nrank = 'many'", "lora.rank = 'many'"),
        ("lora = 3", "lora = 3"),
        ("[training]\nlearning_rate = nan", "training.learning_rate = nan"),
        (b"[chat]\nsystem = 'caf\xe9'", "not UTF-8"),
    ],
)
def test_faults_are_named_with_file_and_place(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_folder_in_its_place_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        load(tmp_path)


def test_preset_fills_what_the_file_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b'\xef\xbb\xbf[training]\r\npreset = "classic"\r\nepochs = 5\r\n')
    settings = load(path)
    assert settings.training.epochs == 5
    for section, values in PRESETS["classic"].items():
        for key, value in values.items():
            if key != "epochs":
                assert settings.get(f"{section}.{key}") == value


def test_importing_it_stays_light() -> None:
    code = (
        "import sys, shammah.settings_file; "
        "print([m for m in ('torch', 'tomlkit', 'sqlalchemy', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"


# Changing

WRITTEN = """\
# My settings.

[lora]
rank = 16          # small
# Strength.
alpha=32.0

# Last words.
[training]
seed = 1
"""


def test_change_keeps_comments_and_order(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(WRITTEN)
    settings, value = set_value(path, "lora.rank", "8")
    assert (value, settings.lora.rank) == (8, 8)
    assert path.read_text() == WRITTEN.replace("rank = 16", "rank = 8")
    set_value(path, "chat.system", "Say “hello” # twice")
    assert path.read_text() == (
        WRITTEN.replace("rank = 16", "rank = 8") + '\n[chat]\nsystem = "Say “hello” # twice"\n'
    )
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("lora.rslora", "on", True),
        ("chat.markdown", "False", False),
        ("training.learning_rate", "1e-4", 1e-4),
        ("training.learning_rate", "1", 1.0),
        ("generation.max_tokens", "1_000", 1000),
        ("generation.seed", "7", 7),
        ("generation.seed", "none", None),
        ("lora.target_modules", "auto", "auto"),
        ("lora.target_modules", "q_proj, v_proj", ["q_proj", "v_proj"]),
        ("lora.target_modules", '["q_proj"]', ["q_proj"]),
        ("model.device", "cpu", "cpu"),
        ("model.name", "./my models/one", "./my models/one"),
        ("chat.system", "", ""),
        ("training.preset", "classic", "classic"),
    ],
)
def test_values_are_read_by_the_type_of_the_setting(
    tmp_path: Path, key: str, text: str, value: object
) -> None:
    path = tmp_path / "new" / "config.toml"
    settings, given = set_value(path, key, text)
    assert given == value == settings.get(key)
    assert type(given) is type(value)
    assert load(path) == settings


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("lora.rnk", "8", "Did you mean lora.rank"),
        ("rank", "8", "no setting 'rank'"),
        ("lora", "8", "no setting 'lora'"),
        ("lora.rank", "eight", "should be a whole number"),
        ("lora.rank", "8.5", "should be a whole number"),
        ("lora.rank", "none", "should be a whole number"),
        ("lora.rank", "0", "greater than or equal to 1"),
        ("lora.dropout", "much", "should be a number"),
        ("lora.rslora", "perhaps", "should be true or false"),
        ("lora.target_modules", "", "at least one module name"),
        ("model.device", "abacus", "model.device = 'abacus'"),
    ],
)
def test_what_cannot_be_set_changes_nothing(
    tmp_path: Path, key: str, text: str, message: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(WRITTEN)
    with pytest.raises(ConfigError, match=re.escape(message)):
        set_value(path, key, text)
    assert path.read_text() == WRITTEN
    assert list(tmp_path.iterdir()) == [path]


def test_setting_may_be_mended_in_a_file_it_breaks(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[lora]\nrank = 'many'  # hm\n")
    assert set_value(path, "lora.rank", "4")[1] == 4
    assert path.read_text() == "[lora]\nrank = 4  # hm\n"
    path.write_text("[lora]\nrank = \n")
    with pytest.raises(ConfigError, match="line 2"):
        set_value(path, "lora.rank", "4")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("lora = {rank = 8, alpha = 4}\n", "lora = {rank = 9, alpha = 4}\n"),
        ("lora.rank = 8\n", "lora.rank = 9\n"),
        ("[lora]\r\n# x\r\nrank = 8\r\n", "[lora]\r\n# x\r\nrank = 9\r\n"),
        ("[training]\nseed = 2", "[training]\nseed = 2\n\n[lora]\nrank = 9\n"),
    ],
)
def test_other_ways_to_write_toml(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(before.encode())
    set_value(path, "lora.rank", "9")
    assert path.read_bytes().decode() == after


def test_none_removes_the_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[generation]\n# a\nseed = 3\ntop_k = 5\n")
    assert set_value(path, "generation.seed", "none")[1] is None
    assert path.read_text() == "[generation]\n# a\ntop_k = 5\n"
    set_value(path, "generation.seed", "none")


def test_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "dotfiles.toml", tmp_path / "config.toml"
    real.write_text("[lora]\nrank = 8\n")
    link.symlink_to(real)
    set_value(link, "lora.rank", "9")
    assert link.is_symlink()
    assert load(real).lora.rank == 9


@given(text=st.text(st.characters(codec="utf-8")))
def test_any_text_can_be_the_system_message(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    settings, value = set_value(path, "chat.system", text)
    assert value == text.strip() == settings.chat.system
    assert load(path) == settings


# The example


def example() -> dict[str, tuple[str, Any]]:
    """Dotted key -> the comment above it and its value; a commented-out setting has None."""
    found: dict[str, tuple[str, Any]] = {}
    values = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    section, comment = "", ""
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            section = heading[1]
        elif left_out := re.fullmatch(r"# (\w+) = \S+", line):
            found[f"{section}.{left_out[1]}"] = (comment, None)
        elif line.startswith("#"):
            comment += line[1:]
        elif setting := re.match(r"(\w+) = ", line):
            found[f"{section}.{setting[1]}"] = (comment, values[section][setting[1]])
        if not line.startswith("#"):
            comment = ""
    return found


def field_of(key: str) -> FieldInfo:
    section, name = key.split(".")
    return type(getattr(Settings(), section)).model_fields[name]


def range_of(key: str) -> str:
    """How the example is to word what a setting allows."""
    field = field_of(key)
    kinds = [field.annotation, *get_args(field.annotation)]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return " | ".join(get_args(kind))
    if bool in kinds:
        return "true or false"
    bounds = {
        name: f"{getattr(bound, name):.10g}"
        for bound in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(bound, name)
    }
    match sorted(bounds):
        case ["ge", "le"]:
            return f"{bounds['ge']} to {bounds['le']}"
        case ["ge", "lt"]:
            return f"{bounds['ge']} to below {bounds['lt']}"
        case ["gt", "le"]:
            return f"above {bounds['gt']}, at most {bounds['le']}"
        case ["ge"]:
            return f"at least {bounds['ge']}"
        case ["gt"]:
            return f"above {bounds['gt']}"
    return ""


def test_example_is_complete_and_equal_to_the_defaults() -> None:
    found = example()
    assert list(found) == keys(), (
        f"config.example.toml lacks {sorted(set(keys()) - set(found))}, "
        f"has too much {sorted(set(found) - set(keys()))}, or has another order than settings.py"
    )
    differing = [
        f"{key}: config.example.toml says {found[key][1]!r}, settings.py {default!r}"
        for key, default in Settings().flat().items()
        if found[key][1] != default
    ]
    assert not differing, "\n".join(differing)
    assert load(EXAMPLE) == Settings()


def test_example_explains_every_setting_with_its_range() -> None:
    faults = []
    for key, (comment, _) in example().items():
        text = " ".join(comment.split())
        if len(text) < 20:
            faults.append(f"{key} has no explanation above it")
        elif range_of(key) not in text:
            faults.append(f"{key}: the comment does not say {range_of(key)!r}")
    assert not faults, "config.example.toml: " + "\n".join(faults)
