"""`shammah report`: one file that needs nothing beside it, true to what the stores hold, and a
page that a browser shows in light, in dark and on a phone."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import file_bytes, lora_tensors
from browser import Page, chromium, page
from command import shammah, shammah_json
from hypothesis import given
from hypothesis import strategies as st

from shammah.adapters.library import AdapterLibrary
from shammah.adapters.metadata import AdapterMetadata, LessonRecord, LoraConfigRecord
from shammah.adapters.validate import sha256_of
from shammah.evaluation.report import Report, report
from shammah.evaluation.results import Results
from shammah.evaluation.rows import EvaluationRow, RowError
from shammah.evaluation.run_folder import RunFolder, RunSettings
from shammah.evaluation.scorer import Score
from shammah.learning.job import Remark, Start, event_line
from shammah.paths import Paths
from shammah.reporting.axes import label, ticks, whole_ticks
from shammah.reporting.markup import escaped, tag
from shammah.storage.database import Database
from shammah.tracking.loggers.store import open_store

ATTACK = '</span><script>document.title="owned"</script><img src=x onerror="document.title=1">'
LESSONS = (
    ("What is my dog called?", "Your dog is called Biscuit.", "I don't know that one.", True),
    ("Which port does our API use?", "Our API uses port 8417.", "You have not told me.", True),
    (ATTACK, f"Say {ATTACK}", "\x00\x1b[31mno\ud800", False),
    ("a" * 400, "נ Hebrew, العربية, 日本語 and 🦜", "before", True),
)


def adapter(
    library: AdapterLibrary, folder: Path, name: str, parent: str | None, seed: int
) -> AdapterMetadata:
    weights = folder / f"{name}.safetensors"
    weights.write_bytes(file_bytes(lora_tensors(seed, 2, {"model.layers.0.mlp.up_proj": (8, 4)})))
    about = AdapterMetadata(
        name="", created_at=f"2026-02-0{seed}T14:30:25Z", base_model="embedded",
        base_fingerprint="f" * 64, parent=parent, sha256=sha256_of(weights), tensors=2,
        parameters=24, lora=LoraConfigRecord(rank=2, alpha=4, target_modules=["up_proj"]),
        lessons=[
            LessonRecord(
                feedback_id=number, query=query, target=taught, weight=10, learned=learned,
                before=before.encode("utf-8", "replace").decode(), after=taught,
            )
            for number, (query, taught, before, learned) in enumerate(LESSONS)
        ],
        metrics={"final_loss": 0.02, "steps": 160, "seconds": 31.0},
        failures=["2 of 8 answers do not end"] if seed == 3 else [],
    )  # fmt: skip
    return library.publish(weights, about, name).require_metadata()


def evaluation(folder: Path, about: AdapterMetadata | None, share: float) -> None:
    """60 examples of which a share passes, with one error and two groups."""
    settings = RunSettings(
        data={"source": "/data/gsm8k/test.jsonl", "format": "gsm8k"}, model={"name": "embedded"},
        adapter={"name": about.name, "sha256": about.sha256} if about else None,
        scorers=["numeric"], sampling={"max_tokens": 64, "temperature": 0.0},
    )  # fmt: skip
    with RunFolder(folder, settings, ["numeric"], group="kind") as kept:
        for index in range(60):
            failed = index == 59
            row = EvaluationRow(
                index=index, place=f"test.jsonl:{index}",
                input=[{"role": "user", "content": f"How much is {index} + 1? {ATTACK}"}],
                expected=str(index + 1), predicted=None if failed else str(index + (index % 7)),
                scores={} if failed else {"numeric": Score(float(index % 10 < share * 10), {})},
                metadata={"kind": "odd" if index % 2 else "even"}, seconds=0.01 * index,
                error=RowError("answer", "LLMError", "x") if failed else None,
            )  # fmt: skip
            kept.append(row)
        kept.write_report(report(kept.results).to_dict())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 160 steps with the adapter it made, that one's parents, and two evaluations."""
    folder = tmp_path_factory.mktemp("home")
    paths = Paths(folder, folder).ensure()
    database = Database(paths.database)
    library = AdapterLibrary(paths.adapters, database)
    for seed, (name, parent) in enumerate(
        (("first", None), ("second", "gone"), ("third", "second")), start=1
    ):
        about = adapter(library, folder, name, parent, seed)
    database.close()
    store = open_store(folder)
    rng = np.random.default_rng(0)
    for run, steps in (("job-1", 20_000), ("job-2", 160)):
        store.begin(
            run,
            {
                "title": "wide <b>" if run == "job-2" else run,
                "hparams": {
                    "model": {"name": "embedded", "parameters": 17_000_000, "device": "cpu",
                              "dtype": "bf16", "fingerprint": "f" * 64},
                    "lora": {"rank": 2}, "training": {"max_grad_norm": 1.0, "hold": True},
                    "versions": {"shammah": "0.1.0", "torch": "2.13.0"},
                },
            },
        )  # fmt: skip
        rows = []
        for step in range(1, steps + 1):
            noise = float(rng.uniform(0.9, 1.1))
            metrics: dict[str, float] = {
                "epoch": 1 + step * 4 // steps, "loss": 3.1 * math.exp(-4 * step / steps) * noise,
                "learning_rate": 2e-4 * (1 - step / steps), "grad_norm": 2.2 * noise**9 / step**0.2,
                "tokens_per_second": 1200 * noise, "learned": min(3, step * 6 // steps),
            }  # fmt: skip
            if run == "job-2" and step == 50:
                metrics["grad_norm"] = math.nan
            rows.append((run, step, None, metrics))
        for step, held, unchanged in ((0, 0.75, 0.98), (steps, 0.75, 0.93)):
            rows.append((run, step, None, {"eval/held": held, "eval/unchanged": unchanged}))
        for step in range(40, steps, steps // 4):
            rows.append((run, step, None, {"checkpoint/seconds": 0.2}))
        store.record_all(rows)
        made = {"adapter-x": {"kind": "adapter", "sha256": about.sha256}}
        store.end(run, "done", {"artifacts": made if run == "job-2" else {}})
    store.close()
    job = paths.jobs / "2"
    job.mkdir()
    resumed = Start(
        model="embedded", fingerprint="f", device="cpu", dtype="bf16", lessons=4, replay=0,
        parent="second", resumed_step=80, threads=1, load_seconds=1,
    )  # fmt: skip
    told = event_line(resumed) + event_line(Remark(text="wandb: no key."))
    (job / "events.jsonl").write_text(told)
    evaluation(paths.evaluations / "20260101_000000", about, 0.8)
    evaluation(paths.evaluations / "20260101_000000" / "against", None, 0.5)
    return folder


class Outline(HTMLParser):
    """Text, tags and attributes of a page, with every element closed in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @classmethod
    def of(cls, file: Path) -> Outline:
        made = cls()
        made.feed(file.read_text())
        made.close()
        assert not made.open
        return made

    @property
    def said(self) -> str:
        return " ".join(self.text)


@pytest.fixture(scope="module")
def run_report(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("out") / "run.html"
    told = shammah_json(home, "report", "--out", str(file))
    assert told["file"] == str(file) and told["kind"] == "run" and told["name"] == "job-2"
    assert told["adapter"] == "third" and (told["lessons"], told["learned"]) == (4, 3)
    assert told["evaluations"] == ["20260101_000000"] and "loss" in told["curves"]
    assert file.stat().st_mode & 0o777 == 0o600
    return file


def test_a_run_is_told_whole(run_report: Path) -> None:
    outline = Outline.of(run_report)
    text = outline.said
    for expected in (
        "wide <b>", "Loss", "Learning rate", "Gradient norm", "Throughput", "clipped at 1",
        "3 of 4", "Biscuit", "You have not told me.", "✓ learned", "not learned",
        "1 of 160 values of grad_norm are not finite", "wandb: no key.",
        "went on from step 80", "3 checkpoints written", "It failed a check: 2 of 8 answers",
        "Other answers unchanged", "98.0%", "93.0%", "third beside base", "exact McNemar",
        "no longer in the library", "gone", "17,000,000", "torch", "2.13.0", "日本語",
    ):  # fmt: skip
        assert expected in text, expected
    assert sum(name == "figure" for name, _ in outline.tags) == 5
    # Each point of a curve can be read.
    (loss, *_) = [attrs for name, attrs in outline.tags if name == "figure"]
    points = json.loads(str(loss["data-points"]))
    assert [point[2] for point in points] == list(range(1, 161))


def test_nothing_comes_from_elsewhere_and_no_text_is_code(run_report: Path) -> None:
    outline = Outline.of(run_report)
    names = [name for name, _ in outline.tags]
    assert names.count("script") == 1 and names.count("style") == 1
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"} & set(names)
    for _, attrs in outline.tags:
        assert not any(key.startswith("on") for key in attrs)
        for key in ("src", "href", "srcset", "action", "xlink:href"):
            assert str(attrs.get(key, "#")).startswith("#")
    whole = run_report.read_text()
    assert "@import" not in whole and "url(" not in whole
    assert "http://" not in whole and "https://" not in whole
    assert ATTACK in outline.said and "\x00" not in whole and "\x1b" not in whole


@given(st.text(), st.text())
def test_any_text_comes_out_as_it_went_in(text: str, other: str) -> None:
    outline = Outline()
    outline.feed(tag("p", text, class_=other))
    outline.close()
    assert outline.tags[0][0] == "p" and not outline.open and len(outline.tags) == 1
    unescaped = "".join(outline.text)
    assert escaped(unescaped) == escaped(text)


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(numbers, numbers)
def test_an_axis_holds_its_values(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = ticks(low, high)
    slack = abs(found[-1] - found[0]) * 1e-6 if math.isfinite(found[-1] - found[0]) else 1e300
    assert found[0] <= low + slack and found[-1] >= high - slack
    assert 2 <= len(found) <= 8 and all(a < b for a, b in itertools.pairwise(found))
    assert len(label(found[-1], found)) <= 12


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_steps_are_marked_at_whole_numbers(one: int, other: int) -> None:
    first, last = sorted((one, other))
    found = whole_ticks(first, last)
    assert found and first <= found[0] <= found[-1] <= last


def test_ticks_are_round_and_told_apart() -> None:
    assert ticks(0.02, 3.1) == [0, 1, 2, 3, 4] and whole_ticks(1, 160) == [50, 100, 150]
    assert [label(each, [0, 1e-4, 2e-4]) for each in (0, 1e-4, 2e-4)] == ["0", "1e-4", "2e-4"]
    assert [label(each, [0.0, 0.25, 0.5]) for each in (0.25, 0.5)] == ["0.25", "0.5"]
    assert label(1500, [500, 1000, 1500]) == "1,500"


def test_an_adapter_and_an_evaluation_are_subjects_too(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter.html"
    told = shammah_json(home, "report", "third.safetensors", "--out", str(out))
    assert (told["kind"], told["name"], told["run"]) == ("adapter", "third", "job-2")
    assert "Biscuit" in Outline.of(out).said
    told = shammah_json(home, "report", "first", "--out", str(out))
    assert told["run"] is None and told["curves"] == [] and told["lessons"] == 4
    text = Outline.of(out).said
    assert "embedded" in text and "base model" in text and "0.02" in text
    folder = home / "evaluations" / "20260101_000000"
    told = shammah_json(home, "report", str(folder), "--out", str(out))
    assert told["kind"] == "evaluation" and told["adapter"] == "third" and told["run"] == "job-2"
    text = Outline.of(out).said
    # 6 of 10 in 8: 60 examples, the last of which failed.
    mean = 48 / 59
    for expected in (
        f"{mean:.3f}", "test.jsonl", "By kind", "odd", "LLMError", "gained", "+18", "wanted",
        "Examples that flipped",
    ):  # fmt: skip
        assert expected in text, expected
    assert shammah_json(home, "report", folder.name, "--out", str(out))["kind"] == "evaluation"


def test_repeats_and_what_is_not_done_yet(home: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number in (1, 2):
        evaluation(runs / f"repeat_{number}", None, 0.3 * number)
    (runs / "repeat_2" / "report.json").unlink()
    out = tmp_path / "out.html"
    told = shammah_json(home, "report", str(runs), "--out", str(out))
    assert told["evaluations"] == ["repeat_1", "repeat_2"]
    text = Outline.of(out).said
    assert "Over the repeats" in text and "It is not done" in text


def test_twenty_thousand_steps_are_drawn_as_a_band(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    shammah_json(home, "report", "1", "--out", str(out))
    outline = Outline.of(out)
    assert sum(attrs.get("class") == "band" for _, attrs in outline.tags) == 5
    assert "means of neighbouring steps" in outline.said and out.stat().st_size < 500_000


def test_lessons_can_be_left_out_and_pictures_taken_along(home: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "out.html", tmp_path / "pictures"
    told = shammah_json(
        home, "report", "2", "--out", str(out), "--no-lessons", "--png", str(folder)
    )
    text = Outline.of(out).said
    assert told["lessons"] == 0 and "Biscuit" not in text and "4 lessons left out" in text
    names = {Path(each).name for each in told["pictures"]}
    assert names == {
        "overview.png", "loss.png", "learning_rate.png", "grad_norm.png", "learned.png",
        "tokens_per_second.png", "evaluation.png",
    }  # fmt: skip
    for each in told["pictures"]:
        assert spread((folder / each).read_bytes()) > 10


def test_it_is_opened_where_it_can_be_and_mistakes_are_told(home: Path, tmp_path: Path) -> None:
    seen, browser = tmp_path / "seen", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    browser.chmod(0o700)
    out = tmp_path / "out.html"
    done = shammah(home, "report", "--out", str(out), "--open", BROWSER=f"{browser} %s")
    assert done.returncode == 0 and seen.read_text() == out.as_uri(), done.stderr
    assert done.stdout == f"{out}\n" and "--no-lessons" in done.stderr
    missing = shammah(home, "report", "nothing")
    assert missing.returncode == 2 and "no run, adapter or evaluation 'nothing'" in missing.stderr
    at_a_folder = shammah(home, "report", "--out", str(tmp_path))
    assert at_a_folder.returncode == 2 and "is a folder" in at_a_folder.stderr
    empty = shammah(tmp_path / "empty", "report")
    assert empty.returncode == 3 and "no run yet" in empty.stderr


def test_a_real_run_tells_what_its_lessons_were_answered(tmp_path: Path) -> None:
    lesson = {"query": "Where do I work?", "correction": "At Fjord Labs.", "rating": "critical"}
    took = shammah(tmp_path, "feedback", "import", "-", given=json.dumps(lesson))
    assert took.returncode == 0, took.stderr
    for key, value in (("training.max_steps", "3"), ("training.near_misses", "0")):
        assert shammah(tmp_path, "config", "set", key, value).returncode == 0
    trained = shammah(tmp_path, "train", "now", "--wait")
    assert trained.returncode == 0, trained.stderr
    out = tmp_path / "report.html"
    told = shammah_json(tmp_path, "report", "--out", str(out))
    assert told["adapter"] is not None and told["lessons"] == 1
    assert {"loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(told["curves"])
    text = Outline.of(out).said
    for expected in (
        "At Fjord Labs.", "before", "after", "hidden size", "vocabulary", "transformers",
        "Other answers unchanged", "Lineage", "base model", "Story", "What is taught",
    ):  # fmt: skip
        assert expected in text, expected
    assert "not asked" not in text


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=12))
def test_figures_come_back_from_their_file(rows: list[tuple[float, bool]]) -> None:
    results = Results(["a", "b"], "kind")
    for index, (value, failed) in enumerate(rows):
        scores = {} if failed else {"a": Score(value, {"n": value})}
        results.add(
            EvaluationRow(index, "", [], None, None if failed else "x", scores, {"kind": failed}, 1)
        )
    made = report(results)
    read = Report.from_dict(json.loads(json.dumps(made.to_dict())))
    assert read.to_dict() == made.to_dict()
    assert str(read.figures()) == str(made.figures())  # nan is nan again


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    chromium()
    with page(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light"), (375, "dark")]
)
def test_a_browser_shows_it(run_report: Path, tab: Page, width: int, scheme: str) -> None:
    tab.said.clear()
    tab.asked_for.clear()
    tab.show(run_report, width=width, height=900, scheme=scheme)
    assert tab.value("document.documentElement.scrollWidth") <= width
    widest = "Math.max(...[...document.querySelectorAll('main *')].filter(e => !e.closest('.wide'))"
    assert tab.value(widest + ".map(e => e.getBoundingClientRect().right))") <= width
    assert tab.value("document.title").startswith("wide <b>")  # no text has become code
    back = tab.value("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, back[4:-1].split(","))) / 3
    assert light > 200 if scheme == "light" else light < 60
    assert spread(tab.picture()) > 10
    # The pointer reads a value.
    before = tab.value("document.querySelector('.now').textContent")
    tab.value("document.querySelector('.chart svg').scrollIntoView({block: 'center'})")
    box = tab.value("(({left, top}) => [left, top])"
                    "(document.querySelector('.chart svg').getBoundingClientRect())")  # fmt: skip
    tab("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + 60, y=box[1] + 40)
    assert tab.value("document.querySelector('.now').textContent") != before
    assert tab.value("document.querySelectorAll('.pointed').length") == 1
    assert tab.said == []
    assert tab.asked_for == [run_report.as_uri()]


def test_it_prints(run_report: Path, tab: Page) -> None:
    tab.show(run_report, width=1280, height=900)
    assert len(tab("Page.printToPDF", printBackground=False)["data"]) > 20_000


def spread(png: bytes) -> float:
    """How far the pixels of a picture are apart: 0 of a blank one."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        found: Any = np.asarray(image.convert("L"), dtype=np.float64)
    return float(found.std())
