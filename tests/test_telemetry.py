"""Events reach who listens, in order, and nobody who listens can break what they tell of."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.tracking import telemetry


@pytest.fixture(autouse=True)
def nobody_listens() -> Iterator[None]:
    yield
    for identity in ("a", "b", "c"):
        telemetry.detach(identity)


def collect(into: list[Any], word: str = "") -> telemetry.Handler:
    def handler(name: str, measurements: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        into.append((word + name, dict(measurements), dict(metadata)))

    return handler


def test_handlers_are_told_in_the_order_they_were_attached() -> None:
    told: list[Any] = []
    telemetry.attach("a", "training.step", collect(told, "a "))
    telemetry.attach_many("b", ["training.step", "adapter.activated"], collect(told, "b "))
    telemetry.emit("training.step", {"step": 1, "loss": 0.5}, {"run": "job-1"})
    telemetry.emit("adapter.activated", metadata={"adapter": None})
    telemetry.emit("training.epoch", {"epoch": 1})
    assert told == [
        ("a training.step", {"step": 1, "loss": 0.5}, {"run": "job-1"}),
        ("b training.step", {"step": 1, "loss": 0.5}, {"run": "job-1"}),
        ("b adapter.activated", {}, {"adapter": None}),
    ]
    assert telemetry.detach("b") and not telemetry.detach("b")
    telemetry.emit("training.step", {"step": 2})
    assert len(told) == 4 and told[-1][0] == "a training.step"


def test_a_handler_that_raises_is_detached_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Any] = []

    def broken(*event: Any) -> None:
        told.append("broken")
        raise RuntimeError("its disk is full")

    telemetry.attach_many("a", ["training.step", "training.epoch"], broken)
    telemetry.attach("b", "training.step", collect(told))
    with caplog.at_level(logging.ERROR):
        for step in range(3):
            telemetry.emit("training.step", {"step": step})
        telemetry.emit("training.epoch", {"epoch": 1})
    assert [entry for entry in told if entry == "broken"] == ["broken"] and len(told) == 4
    (record,) = caplog.records
    assert "a failed at training.step" in record.message and record.exc_info


def test_names_and_identities_are_checked() -> None:
    told: list[Any] = []
    with pytest.raises(ValueError, match=r"no event 'training.stop'. Did you mean training\.st"):
        telemetry.attach_many("a", ["training.epoch", "training.stop"], collect(told))
    telemetry.emit("training.epoch")
    telemetry.attach("a", "training.epoch", collect(told))
    with pytest.raises(ValueError, match="'a' is attached already"):
        telemetry.attach("a", "training.step", collect(told))
    assert told == []


def test_a_span_says_when_it_began_and_how_it_ended() -> None:
    told: list[Any] = []
    names = [f"stage.{word}" for word in ("start", "stop", "exception")]
    with telemetry.attached("a", names, collect(told)):
        with telemetry.span("stage", "load", {"job": 3}):
            pass
        with pytest.raises(KeyError), telemetry.span("stage", "train"):
            raise KeyError("x")
    telemetry.emit("stage.start")
    assert [name for name, _, _ in told] == [
        "stage.start", "stage.stop", "stage.start", "stage.exception",
    ]  # fmt: skip
    assert told[1][2] == {"stage": "load", "job": 3} and told[1][1]["seconds"] >= 0
    assert told[3][2] == {"stage": "train", "error": "KeyError"}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_who_is_attached_is_told_and_nobody_else(moves: list[tuple[str, bool]]) -> None:
    told: list[Any] = []
    there: set[str] = set()
    for identity, attach in moves:
        if attach and identity not in there:
            telemetry.attach(identity, "training.eval", collect(told, identity))
            there.add(identity)
        elif not attach:
            assert telemetry.detach(identity) == (identity in there)
            there.discard(identity)
    telemetry.emit("training.eval")
    assert sorted(name[0] for name, _, _ in told) == sorted(there)
    for identity in there:
        telemetry.detach(identity)


def test_threads_may_attach_and_detach_while_events_are_told() -> None:
    stop = threading.Event()

    def come_and_go(word: str) -> None:
        while not stop.is_set():
            with telemetry.attached(word, ["training.step"], lambda *event: None):
                pass

    threads = [threading.Thread(target=come_and_go, args=(word,)) for word in "ab"]
    told: list[Any] = []
    telemetry.attach("c", "training.step", collect(told))
    for thread in threads:
        thread.start()
    for step in range(2000):
        telemetry.emit("training.step", {"step": step})
    stop.set()
    for thread in threads:
        thread.join()
    assert [measured["step"] for _, measured, _ in told] == list(range(2000))
