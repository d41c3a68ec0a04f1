"""Routing by domain: two adapters, really trained, and the questions that go to each of them."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import FINGERPRINT, metadata_for
from command import change, shammah, shammah_json, teach
from ten_lessons import TEN
from tiny_models import engine_for

from shammah.adapters.domains import DomainAdapter, DomainRouter, domain_adapters, nearness
from shammah.adapters.library import Adapter
from shammah.adapters.metadata import LessonRecord
from shammah.assistant import Assistant, Notice
from shammah.assistant.workspace import Workspace
from shammah.cli.ask import answer_record
from shammah.generation.embedding import HiddenStateEmbedder
from shammah.models.load import BaseModel
from shammah.paths import Paths
from shammah.settings_file import load

SERVER = (TEN[1], TEN[5], TEN[6], TEN[8])
PEOPLE = (
    ("Who reviews my pull requests?", "Marta reviews your pull requests."),
    ("When is my weekly meeting?", "Your weekly meeting is on Thursday at 10:30."),
    ("Who is my manager?", "Your manager is Oskar."),
    ("When is my dentist appointment?", "Your dentist appointment is on Monday at nine."),
)
REPHRASED = {
    "server": ("which port is my server using?", "how can i deploy my site?"),
    "people": ("when do i have my weekly meeting?", "who looks at my pull requests?"),
}
UNRELATED = ("how do I reverse a list in python?", "what is the capital of France?", "hello")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which two adapters were trained, each for its domain."""
    home = tmp_path_factory.mktemp("home")
    change(home, {"adapters.routing": "domain", "training.nice": "0", "training.rephrasings": "2"})
    for domain, lessons in (("server", SERVER), ("people", PEOPLE)):
        teach(home, [{"query": query, "correction": answer} for query, answer in lessons])
        done = shammah(home, "train", "now", "--wait", "--domain", domain)
        assert done.returncode == 0, done.stderr
        assert f"for {domain}: questions like its lessons go to it" in done.stderr
    return home


def ask(home: Path, *questions: str, adapter: str | None = None) -> tuple[list[Any], str]:
    """The answers' records as `shammah ask --json` gives them, and what was said beside them."""
    paths = Paths(home, home)
    said: list[Notice] = []

    async def work() -> list[Any]:
        settings = load(paths.config_file)
        assistant = Assistant(settings, paths, on_notice=said.append, train=False, adapter=adapter)
        await assistant.start()
        rows = []
        for question in questions:
            assistant.clear()
            handle = assistant.ask(question)
            await handle.text()
            rows.append(answer_record(question, handle))
        await assistant.close()
        return rows

    rows = asyncio.run(work())
    return rows, "\n".join(notice.text for notice in said)


def names(home: Path) -> dict[str, str]:
    """Domain -> the name of its newest adapter."""
    about = [json.loads(file.read_bytes()) for file in (home / "adapters").glob("*.json")]
    return {one["domain"]: one["name"] for one in sorted(about, key=lambda one: one["created_at"])}


def test_each_question_goes_to_its_adapter_and_others_to_the_active_one(home: Path) -> None:
    known = names(home)
    assert set(known) == {"server", "people"}
    assert not any(row["active"] for row in shammah_json(home, "adapters", "list"))
    taught = [*SERVER, *PEOPLE]
    asked = [query for query, _ in taught] + [q for ways in REPHRASED.values() for q in ways]
    rows, said = ask(home, *asked, *UNRELATED)
    assert said == ""
    wanted = ["server"] * 4 + ["people"] * 4 + ["server"] * 2 + ["people"] * 2 + [None] * 3
    assert [row["domain"] for row in rows] == wanted
    assert [row["adapter"] for row in rows] == [known.get(domain) for domain in wanted]
    right = [row["answer"] == answer for row, (_, answer) in zip(rows, taught, strict=False)]
    assert sum(right) >= 7, rows[:8]
    # What an adapter answered counts for it.
    found = shammah_json(home, "adapters", "compare", known["server"])
    assert found["second"]["answers"] == 6


def test_off_changes_nothing(home: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(home, tmp_path / "home")
    questions = [*(query for query, _ in SERVER), *UNRELATED]
    change(copy, {"adapters.routing": "off"})
    off, _ = ask(copy, *questions)
    assert {(row["adapter"], row["domain"]) for row in off} == {(None, None)}
    # And an unrelated question is answered word by word as without routing.
    on, _ = ask(home, *UNRELATED)
    assert [row["answer"] for row in on] == [row["answer"] for row in off[-3:]]


def test_what_was_loaded_answers_the_rest(home: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(home, tmp_path / "home")
    known = names(copy)
    shammah_json(copy, "adapters", "load", known["people"])
    change(copy, {"adapters.scope": "all"})
    rows, _ = ask(copy, SERVER[0][0], UNRELATED[0], PEOPLE[0][0])
    assert [row["adapter"] for row in rows] == [known[d] for d in ("server", "people", "people")]
    assert [row["domain"] for row in rows] == ["server", None, "people"]
    # An adapter chosen for the whole run stands above routing.
    ((fixed,), _) = ask(copy, SERVER[0][0], adapter="none")
    assert (fixed["adapter"], fixed["domain"]) == (None, None)
    shammah_json(copy, "adapters", "domain", known["server"], "--clear")
    assert ask(copy, SERVER[0][0])[0][0]["adapter"] == known["people"]


def test_the_chat_says_which_adapter_answered(home: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(home, tmp_path / "home")
    done = shammah(copy, "chat", "--no-train", given=f"{SERVER[0][0]}\n/good\nhello\n")
    server = names(copy)["server"]
    assert (done.stdout + done.stderr).count(f"server: answered by {server}") == 1
    (rated, *_) = shammah_json(copy, "feedback", "list")
    assert rated["adapter"] == server


@pytest.mark.parametrize("fault", ["broken", "missing", "undescribed"])
def test_what_cannot_be_used_is_left_out_and_said_once(
    home: Path, tmp_path: Path, fault: str
) -> None:
    copy = shutil.copytree(home, tmp_path / "home")
    name = names(copy)["server"]
    weights = copy / "adapters" / f"{name}.safetensors"
    questions = [SERVER[0][0], SERVER[1][0], PEOPLE[0][0]]
    if fault == "broken":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif fault == "missing":
        weights.unlink()
    else:
        weights.with_suffix(".json").unlink()
    rows, said = ask(copy, *questions)
    assert [row["domain"] for row in rows] == [None, None, "people"]
    if fault == "undescribed":  # Nothing says any more that it was for a domain.
        assert said == ""
    else:
        assert said.count(f"{name} does not answer questions about server: ") == 1


def test_an_embedding_that_is_not_there_leaves_the_active_adapter(
    home: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(home, tmp_path / "home")
    change(copy, {"adapters.embedding": str(tmp_path / "nothing")})
    rows, said = ask(copy, SERVER[0][0], PEOPLE[0][0])
    assert [row["domain"] for row in rows] == [None, None]
    assert said.count("Questions are not routed to adapters") == 1


def test_a_further_job_goes_on_in_its_domain_alone(home: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(home, tmp_path / "home")
    asked = "What is the backup host called?"
    teach(copy, [{"query": asked, "correction": "The backup host is called heron."}])
    known: dict[str | None, str] = {**names(copy)}
    for domain, parent, earlier in (("server", "server", 4), ("new", None, 0), ("", None, 8)):
        change(copy, {"training.domain": domain})
        workspace = Workspace(load(copy / "config.toml"), Paths(copy, copy))
        planned = workspace.plan()
        workspace.close()
        assert planned.domain == (domain or None)
        assert (planned.parent, planned.earlier) == (known.get(parent), earlier)
    change(copy, {"training.domain": "server"})
    assert shammah(copy, "train", "now", "--wait").returncode == 0
    newest = names(copy)["server"]
    about = json.loads((copy / "adapters" / f"{newest}.json").read_bytes())
    assert about["parent"] == known["server"] != newest
    rows, _ = ask(copy, SERVER[0][0], "what's the backup host called?", PEOPLE[0][0])
    assert [row["adapter"] for row in rows[:2]] == [newest] * 2
    assert rows[0]["answer"] == SERVER[0][1] and rows[2]["domain"] == "people"


# --- the parts ----------------------------------------------------------------------------------


def described(name: str, domain: str | None, *queries: str, **changes: Any) -> Adapter:
    lessons = [
        LessonRecord(feedback_id=1, query=query, target="x", weight=1.0, learned=True)
        for query in queries
    ]
    about = metadata_for(b"", name=name, domain=domain, lessons=lessons, **changes)
    return Adapter(name, Path(name), about, 1)


def test_the_newest_of_a_line_stands_for_all_of_it() -> None:
    first = described("a1", "sql", "one", "two")
    other = described("g", None, "general")
    second = described("a2", "sql", "three", "one", parent="a1")
    crossed = described("b1", "rust", "four", parent="a2")
    failed = described("a3", "sql", "five", parent="a2", failures=["it is worse"])
    empty = described("e", "sql")
    alien = described("x", "sql", "six", base_fingerprint="0" * 64)
    library = [alien, empty, failed, crossed, second, other, first]

    def found(**how: bool) -> dict[str, tuple[str, ...]]:
        return {one.name: one.questions for one in domain_adapters(library, FINGERPRINT, **how)}

    assert found() == {"b1": ("four",), "a2": ("three", "one", "two")}
    assert found(failed=True) == {"b1": ("four",), "a3": ("five", "three", "one", "two")}


def test_nearness_is_that_of_the_nearest_lesson_or_of_the_middle() -> None:
    lessons = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    assert nearness(lessons[0], lessons) == pytest.approx(1.0)
    between = np.array([1, 1, 0], np.float32) / np.float32(2**0.5)
    assert nearness(between, lessons) == pytest.approx(1.0)
    assert nearness(np.array([0, 0, 1], np.float32), lessons) == pytest.approx(0.0)
    assert nearness(lessons[0], lessons[:1]) == pytest.approx(1.0)


def test_lessons_are_embedded_once_and_kept_while_they_are_wanted(
    embedded_model: BaseModel, tmp_path: Path
) -> None:
    engine = engine_for(embedded_model)
    embedder = HiddenStateEmbedder(embedded_model, engine.renderer)
    adapters = [
        DomainAdapter("s", "server", tuple(query for query, _ in SERVER)),
        DomainAdapter("p", "people", tuple(query for query, _ in PEOPLE)),
    ]

    async def routed(*known: DomainAdapter) -> list[str]:
        router = DomainRouter(embedder, tmp_path / "kept")
        await router.learn(known)
        return [route.adapter for route in await router.candidates(REPHRASED["server"][0], 0.5)]

    assert asyncio.run(routed(*adapters)) == ["s"]
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    assert len(kept) == 2
    assert asyncio.run(routed(*adapters)) == ["s"]
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    for file in kept:
        file.write_bytes(b"\x93NUMPY")  # what is damaged is made again
    assert asyncio.run(routed(*adapters)) == ["s"]
    assert all(file.stat().st_size > 1000 for file in kept)
    assert asyncio.run(routed(adapters[1])) == []
    assert len(list((tmp_path / "kept").iterdir())) == 1
    engine.close()
