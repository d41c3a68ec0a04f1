"""Adapters for domains: how they come to one, and which questions go to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter_files import write_adapter
from command import LESSONS_ALONE, change, shammah, shammah_json, teach

from shammah.adapters.library import AdapterLibrary
from shammah.errors import AdapterError, ConfigError, TrainingError
from shammah.feedback.store import FeedbackStore
from shammah.learning.job import JobSpec
from shammah.learning.queue import JobQueue
from shammah.messages import user
from shammah.paths import Paths
from shammah.settings import FeedbackSettings, Settings
from shammah.storage.database import Database


@pytest.fixture
def library(tmp_path: Path) -> Iterator[AdapterLibrary]:
    paths = Paths(tmp_path / "home", tmp_path / "home").ensure()
    database = Database(paths.database)
    yield AdapterLibrary(paths.adapters, database)
    database.close()


def test_an_adapter_is_given_a_domain_and_keeps_it(library: AdapterLibrary, tmp_path: Path) -> None:
    name = library.publish(*write_adapter(tmp_path)).name
    assert library.get(name).require_metadata().domain is None
    assert library.set_domain(name, " Rust ").require_metadata().domain == "rust"
    assert library.rename(name, "crab").require_metadata().domain == "rust"
    for wrong in ("", "two words", "none", "x" * 41, "-"):
        with pytest.raises(AdapterError, match="no name for a domain"):
            library.set_domain("crab", wrong)
    assert library.get("crab").require_metadata().domain == "rust"
    assert library.set_domain("crab", None).require_metadata().domain is None


def test_the_shell_shows_and_sets_domains(library: AdapterLibrary, tmp_path: Path) -> None:
    home = tmp_path / "home"
    name = library.publish(*write_adapter(tmp_path)).name
    assert "domain" not in shammah(home, "adapters", "list").stdout
    said = shammah(home, "adapters", "domain", name, "C++").stdout
    assert said == f"{name} is for c++.\n"
    assert "c++" in shammah(home, "adapters", "list").stdout
    assert shammah_json(home, "adapters", "list")[0]["domain"] == "c++"
    assert shammah_json(home, "adapters", "show", name)["domain"] == "c++"
    assert shammah_json(home, "adapters", "domain", name) == {"adapter": name, "domain": "c++"}
    shown = given(home, f"/adapters domain {name} --clear", f"/adapters domain {name} sql")
    assert f"{name} is for no domain." in shown and f"{name} is for sql." in shown
    found = shammah_json(home, "adapters", "compare", name)
    assert found["second"]["info"]["domain"] == "sql"
    for wrong in (("a b",), ("sql", "--clear")):
        assert shammah(home, "adapters", "domain", name, *wrong).returncode in (2, 5)


def given(home: Path, *lines: str) -> str:
    """What the chat says to lines that are piped in."""
    return shammah(home, "chat", "--no-train", given="\n".join(lines) + "\n").stdout


def test_a_job_is_for_the_domain_of_the_settings_or_its_own(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path).ensure()
    database = Database(paths.database)
    feedback = FeedbackStore(database, FeedbackSettings())
    queue = JobQueue(database, paths, feedback)

    def teach(number: int) -> None:
        feedback.add((user(f"q {number}"),), "wrong", "critical", None, None, f"a {number}", "m")

    settings = Settings.from_dict({"training": {"domain": "SQL"}})
    teach(1)
    first = queue.enqueue(settings, reason="now")
    teach(2)
    second = queue.enqueue(settings, reason="now", domain="rust")
    domains = [JobSpec.read(job.folder).training.domain for job in (first, second)]
    assert domains == ["sql", "rust"]
    # With nothing new to train on, a job on its way cannot be given another domain.
    assert queue.enqueue(settings, reason="now").id == first.id
    with pytest.raises(TrainingError, match="for sql, not for go"):
        queue.enqueue(settings, reason="now", domain="go")
    with pytest.raises(ConfigError, match="no name for a domain"):
        Settings.from_dict({"training": {"domain": "a b"}})
    database.close()


def test_a_trained_adapter_has_the_domain_of_its_job(tmp_path: Path) -> None:
    change(tmp_path, {**LESSONS_ALONE, "adapters.activate": "always"})
    teach(tmp_path, [{"query": "Which port does my server use?", "correction": "Port 8087."}])
    assert shammah_json(tmp_path, "train", "plan")["domain"] is None
    assert shammah(tmp_path, "train", "now", "--domain", "a b").returncode == 2
    done = shammah(tmp_path, "train", "now", "--wait", "--domain", "server")
    assert done.returncode == 0 and ", for server" in done.stderr
    (listed,) = shammah_json(tmp_path, "adapters", "list")
    assert listed["domain"] == "server" and listed["active"]
