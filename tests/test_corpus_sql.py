"""The SQL answers of the corpus: every block and every whole statement runs in SQLite."""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from embedded_model.corpus import Answer, load_corpus  # noqa: E402

FENCE = re.compile(r"```sql\n(.*?)```", re.DOTALL)
ANY_FENCE = re.compile(r"```.*?```", re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
STATEMENT = re.compile(
    r"(?:ALTER|ANALYZE|BEGIN|COMMIT|CREATE|DELETE|DROP|EXPLAIN|INSERT|PRAGMA|REINDEX|RELEASE"
    r"|REPLACE|ROLLBACK|SAVEPOINT|SELECT|UPDATE|VACUUM|VALUES|WITH)\b.*;"
)
SCHEMA = """
CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, age INTEGER, city TEXT, email TEXT);
INSERT INTO people (name, age, city, email) VALUES
  ('Ann', 34, 'Rome', 'ann@example.org'), ('Bob', 16, 'Paris', 'bob@example.org'),
  ('Cleo', NULL, 'Rome', 'cleo@example.org'), ('Dan', 61, NULL, NULL);
CREATE TABLE orders (
  id INTEGER PRIMARY KEY,
  person_id INTEGER REFERENCES people (id),
  total REAL,
  ordered_at TEXT
);
INSERT INTO orders (person_id, total, ordered_at) VALUES
  (1, 40, '2026-01-30'), (1, 25.5, '2026-02-06'), (2, 8, '2026-02-07');
CREATE TABLE pets (id INTEGER PRIMARY KEY, owner_id INTEGER, name TEXT);
INSERT INTO pets (owner_id, name) VALUES (1, 'Tom'), (3, 'Rex');
CREATE TABLE accounts (id INTEGER PRIMARY KEY, sum INTEGER);
INSERT INTO accounts (sum) VALUES (100), (50);
CREATE TABLE log (id INTEGER PRIMARY KEY, text TEXT);
"""
"""What the answers may refer to; an answer that makes one of these itself drops it in `setup`."""

FEW = 4
"""How many answers may be about databases other than SQLite."""


def texts_of(answer: Answer) -> Iterator[str]:
    yield answer.text
    yield from (follow.answer for follow in answer.follow_ups)
    yield from (revision.answer for revision in answer.revisions)


def scripts_of(answer: Answer) -> Iterator[str]:
    """Each text's blocks, joined as they are read, and each whole statement in the prose."""
    for text in texts_of(answer):
        if blocks := FENCE.findall(text):
            yield "\n".join(blocks)
        yield from filter(STATEMENT.fullmatch, SPAN.findall(ANY_FENCE.sub("", text)))


def setup_of(answer: Answer) -> str:
    """The answer's preparation in SQL; beside a Python block it is Python."""
    python = any("```python" in text for text in texts_of(answer))
    return "" if python else answer.setup


def failure(script: str, setup: str = "") -> str:
    """What SQLite has against a script, or nothing."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        try:
            db.executescript(SCHEMA + setup)
            if not sqlite3.complete_statement(script):
                return "the last statement is not ended"
            db.executescript(script)
        except sqlite3.Error as error:
            return str(error)
    return ""


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    return [answer for answer in load_corpus().answers if answer.topic == "sql"]


def test_sql_runs(answers: list[Answer]) -> None:
    failed = []
    count = 0
    for answer in answers:
        if not answer.run:
            continue
        for script in scripts_of(answer):
            count += 1
            if found := failure(script, setup_of(answer)):
                failed.append((answer.id, found, script))
    assert not failed
    assert count > 40


def test_few_answers_are_not_run(answers: list[Answer]) -> None:
    assert sum(not answer.run for answer in answers) <= FEW


@pytest.mark.parametrize(
    "script", ["SELECT nothing FROM people;", "SELEC 1;", "SELECT name FROM people"]
)
def test_broken_sql_is_noticed(script: str) -> None:
    assert failure(script)


def test_whole_statements_are_found_in_prose() -> None:
    assert STATEMENT.fullmatch("DROP TABLE people;")
    assert not STATEMENT.fullmatch("WHERE age IS NULL")
    assert not STATEMENT.fullmatch("db.execute(query);")
