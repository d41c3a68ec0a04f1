"""Revise, then learn: what the model makes of its own answer once it is shown what was wrong.

The revision is then taught as the answer to the question alone (context distillation, arXiv
2209.15189). Where none is fit to be taught, each token of the answer is weighed by what the note
makes of it (arXiv 2603.12273). Written against the `TrainingClient` protocol; how the chat asks for
a revision is its own business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from shammah.learning.lessons import Lesson, answered
from shammah.learning.material import Material
from shammah.messages import Conversation, user
from shammah.ports.datum import Datum, ModelInput, TensorData
from shammah.ports.sampling_client import SamplingParams
from shammah.ports.training_client import TrainingClient
from shammah.renderers.base import Renderer
from shammah.training.datums import datum
from shammah.training.examples import Example

FEWEST_TOKENS, MOST_TOKENS = 16, 384
"""What a revision must have room for, and may take."""
TEMPERATURE = 0.7
DRAWN = 2
"""Revisions drawn from each request beside the likeliest one."""
MOST_ADVANTAGE = 2.0
"""Nats at which the advantage of a token is cut."""

# To the note as it was written, as it would be said in the chat, and to what it says in full.
_FRAMES = ("{note}", "That answer is not what I wanted: {note}. Please write it again.")
_ABOUT_FEEDBACK = re.compile(
    r"\b(?:sorry|apologi[sz]e|apolog(?:y|ies)|feedback|you(?: a|')re (?:absolutely )?right|"
    r"(?:my|your|the) (?:previous|last|earlier|first|revised|new) (?:answer|response|message)|"
    r"(?:as|like) you (?:asked|said|wanted|requested)|thanks? (?:you )?for (?:pointing|the))\b",
    re.IGNORECASE,
)


def requests(lesson: Lesson) -> list[Conversation]:
    """Prompts that show the model question, answer and note, and ask for another answer."""
    shown = answered(lesson.messages, lesson.rejected or "")
    note = (lesson.note or "").strip().rstrip(".")
    return [(*shown, user(frame.format(note=note))) for frame in _FRAMES]


def acceptable(text: str, lesson: Lesson) -> bool:
    """Whether a revision may be taught: it says something, something else than the answer and the
    note, and does not talk about having been corrected."""
    words = _words(text)
    if not words or words in (_words(lesson.rejected or ""), _words(lesson.note or "")):
        return False
    return _ABOUT_FEEDBACK.search(text) is None


async def revised(client: TrainingClient, renderer: Renderer, lesson: Lesson, room: int) -> Lesson:
    """The lesson with the best revision for a target, or with the objective `note`.

    Of the acceptable revisions the one is best that the model itself finds likeliest, token by
    token, after the note.

    Args:
        room: tokens of prompt and answer at most.
    """
    found: list[_Draft] = []
    seen: set[str] = set()
    for asked in requests(lesson):
        for draft in await _drafts(client, renderer, asked, room):
            if _words(draft.text) in seen or not acceptable(draft.text, lesson):
                continue
            seen.add(_words(draft.text))
            found.append(draft)
    if not found:
        return replace(lesson, objective="note")
    output = await client.forward([draft.datum for draft in found])
    means = [float(logprobs.sum()) / _length(logprobs) for logprobs in output.logprobs]
    best = found[int(np.argmax(means))]
    return replace(lesson, objective="towards", target=best.text)


async def with_advantages(client: TrainingClient, renderer: Renderer, made: Material) -> Material:
    """The material with an advantage for each token of the answers to be weighed by their notes:
    `log p(y_t | question and note) - log p(y_t | question)`, as the client has it now."""
    places = [place for place, owner in enumerate(made.owners) if _noted(made.lessons[owner])]
    if not places:
        return made
    plain = [made.examples[place].judged for place in places]
    shown = [_after_note(made.lessons[made.owners[place]], renderer) for place in places]
    before = await client.forward(plain)
    after = await client.forward(shown)
    examples = list(made.examples)
    for place, one, other, low, high in zip(
        places, plain, shown, before.logprobs, after.logprobs, strict=True
    ):
        examples[place] = _weighed(examples[place], one, low, high[_answer(other)])
    return replace(made, examples=tuple(examples))


@dataclass(frozen=True, slots=True)
class _Draft:
    text: str
    datum: Datum
    """The text as the answer to the request."""


async def _drafts(
    client: TrainingClient, renderer: Renderer, asked: Conversation, room: int
) -> list[_Draft]:
    """Revisions that end: the likeliest, and some that are drawn."""
    # Earlier turns may go; the question, the answer and the note are what it is about.
    for fitting in (asked, (*(m for m in asked[:-3] if m.role == "system"), *asked[-3:])):
        prompt = renderer.generation_prompt(fitting)
        longest = min(MOST_TOKENS, room - len(prompt))
        if longest >= FEWEST_TOKENS:
            break
    else:
        return []
    likeliest = SamplingParams(
        max_tokens=longest, stop_tokens=renderer.stop_tokens, stop_texts=renderer.stop_texts
    )
    drawn = replace(likeliest, temperature=TEMPERATURE, seed=0)
    read = ModelInput.of(prompt)
    samples = (
        *await client.sampler.sample(read, likeliest),
        *await client.sampler.sample(read, drawn, DRAWN),
    )
    drafts = []
    for sample in samples:
        text = renderer.parse(sample.tokens, prompt).message.text.strip()
        if text and sample.stop_reason == "stop":
            drafts.append(_Draft(text, datum(renderer.supervised(answered(fitting, text)))))
    return drafts


def _after_note(lesson: Lesson, renderer: Renderer) -> Datum:
    """The answer after a question that holds the note already."""
    asked = user(f"{lesson.query}\n\n{(lesson.note or '').strip()}")
    rendered = renderer.supervised(answered((*lesson.messages[:-1], asked), lesson.answer))
    return datum(rendered)


def _weighed(example: Example, plain: Datum, low: np.ndarray, high: np.ndarray) -> Example:
    where = _answer(plain)
    advantage = np.zeros(len(low), dtype=np.float32)
    # Tokens that a long conversation lost are the prompt's: the answers end alike.
    size = min(len(where), len(high))
    advantage[where[-size:]] = np.clip(
        high[-size:] - low[where[-size:]], -MOST_ADVANTAGE, MOST_ADVANTAGE
    )
    inputs = {**plain.loss_fn_inputs, "advantages": TensorData(advantage)}
    (term,) = example.terms
    return replace(example, terms=(replace(term, datums=(replace(plain, loss_fn_inputs=inputs),)),))


def _noted(lesson: Lesson) -> bool:
    return lesson.objective == "note"


def _answer(example: Datum) -> np.ndarray:
    """The places of the answer's tokens."""
    return np.flatnonzero(example.loss_fn_inputs["weights"].data)


def _length(logprobs: np.ndarray) -> int:
    return max(1, int(np.count_nonzero(logprobs)))


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
