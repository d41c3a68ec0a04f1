"""From a finished job to an adapter in the library.

Doing it twice gives one adapter: a process that dies in between leaves nothing double. Knows
neither processes nor the queue.
"""

from __future__ import annotations

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.metadata import (
    AdapterMetadata,
    LessonRecord,
    LoraConfigRecord,
    RoundRecord,
)
from shammah.learning.job import Complete, JobSpec, now
from shammah.learning.queue import Job


def publish(
    job: Job,
    spec: JobSpec,
    result: Complete,
    library: AdapterLibrary,
    *,
    activate: bool,
    domain: str | None = None,
) -> Adapter:
    """Publish the weights of a job folder, and make them the active adapter of their base model.

    Args:
        domain: what the adapter is for.

    Raises:
        StorageError: the disk is full or the library cannot be written; the job folder is as it
            was.
        AdapterError: the library refuses the weights.
    """
    adapter = _published(result, library)
    if adapter is None:
        adapter = library.publish(job.folder / result.weights, metadata(spec, result, domain))
    if activate and library.active(result.fingerprint) != adapter.name:
        library.activate(result.fingerprint, adapter.name)
    return adapter


def metadata(spec: JobSpec, result: Complete, domain: str | None = None) -> AdapterMetadata:
    """What is to be known about the adapter of a job. The library fills in its name."""
    learned = set(result.learned)
    answered = {
        outcome.feedback_id: {"before": outcome.before, "after": outcome.after}
        for outcome in result.outcomes
        if outcome.feedback_id is not None
    }
    return AdapterMetadata(
        name="",
        created_at=now(),
        base_model=result.model,
        base_fingerprint=result.fingerprint,
        lora=LoraConfigRecord(**result.lora.model_dump(mode="json", exclude={"frozen"})),
        parent=spec.parent.name if spec.parent else None,
        domain=domain,
        lessons=[
            LessonRecord(
                feedback_id=lesson.feedback_id,
                query=lesson.query,
                objective=lesson.objective,
                target=result.revisions.get(lesson.feedback_id or 0, lesson.target),
                rejected=lesson.rejected,
                weight=lesson.weight,
                learned=lesson.feedback_id in learned,
                **answered.get(lesson.feedback_id or 0, {}),
            )
            for lesson in spec.taught
        ],
        rounds=_rounds(spec, result),
        metrics={
            "final_loss": result.final_loss,
            "examples": result.examples,
            "replayed": result.replayed,
            "learned": len(result.learned),
            "steps": result.steps,
            "epochs": result.epochs,
            "tokens": result.tokens,
            "seconds": result.seconds,
            **_behaviour(result),
        },
        failures=list(result.gate.failures) if result.gate else [],
        sha256=result.sha256,
        tensors=result.tensors,
        parameters=result.parameters,
        origin="trained",
    )


def _rounds(spec: JobSpec, result: Complete) -> list[RoundRecord]:
    """What the ranks of the adapter hold, where it is made of several rounds."""
    frozen = result.lora.frozen
    if not frozen or spec.parent is None:
        return []
    earlier = [RoundRecord(rank=part.rank, lessons=part.lessons) for part in spec.parent.rounds]
    if sum(part.rank for part in earlier) != frozen:
        # They were recompressed, and are no longer apart.
        lessons = [number for part in earlier for number in part.lessons]
        earlier = [RoundRecord(rank=frozen, lessons=tuple(lessons))]
    new = tuple(lesson.feedback_id for lesson in spec.taught)
    return [*earlier, RoundRecord(rank=result.lora.rank - frozen, lessons=new)]


def _behaviour(result: Complete) -> dict[str, float]:
    """What the gate measured of the new adapter."""
    if result.gate is None:
        return {}
    after = result.gate.after
    return {
        "earlier": after.earlier,
        "earlier_held": after.held,
        "other_answers": after.anchors,
        "other_answers_unchanged": after.unchanged,
        "anchor_loss": after.anchor_loss,
    }


def completed_text(
    spec: JobSpec, result: Complete, name: str, *, active: bool, domain: str | None
) -> str:
    """The message that says what training achieved. `domain` is what the adapter was given."""
    learned = len(result.learned)
    replayed = f" and {result.replayed} earlier ones" if result.replayed else ""
    fitting = f"{name}, for {domain}" if domain else name
    if spec.routed_domain is not None:
        how = (
            f" (not used yet: /adapters domain {name} {spec.routed_domain})"
            if domain is None
            else ": questions like its lessons go to it"
        )
    else:
        how = "" if active else f" (not active: /adapters load {name})"
    lines = [
        "✓ Background training completed!",
        f"  Examples trained: {result.examples}{replayed}   Final loss: {result.final_loss:.4f}",
        f"  Lessons learned: {learned} of {len(result.outcomes)}",
        f"  Adapter: {fitting}{how}",
    ]
    queries = {lesson.feedback_id: lesson.query for lesson in spec.taught}
    for outcome in result.outcomes:
        if not outcome.learned:
            why = outcome.problem or "not answered as taught yet"
            lines.append(f"  ✗ {_short(queries.get(outcome.feedback_id, ''))}: {why}")
    return "\n".join(lines)


def refused_text(result: Complete, name: str) -> str:
    """The message that says why an adapter does not answer, and what can be done."""
    failures = result.gate.failures if result.gate else ()
    lines = [
        "Background training is done, but its adapter does not answer: it failed its checks.",
        *(f"  ✗ {failure}" for failure in failures),
        f"  Adapter: {name} (/adapters load {name} uses it all the same)",
        f"  Its {result.examples} lessons are set aside: /feedback list dropped shows them, "
        "/feedback edit N puts one back.",
    ]
    return "\n".join(lines)


def _short(text: str, length: int = 50) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _published(result: Complete, library: AdapterLibrary) -> Adapter | None:
    for adapter in library.list():
        if adapter.metadata is not None and adapter.metadata.sha256 == result.sha256:
            return adapter
    return None
