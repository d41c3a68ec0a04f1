"""The corpus: data files under `scripts/corpus/`, read, validated and joined with the templates.

A topic file holds answers, grouped by the kind of question they answer (`[[howto]]`, `[[what]]`
...). The kind names a list of templates in `templates.toml`; `say` fills their `<subject>`, and
`also` adds whole phrasings of its own. Knows nothing about tokens or training.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from embedded_model.grammar import Grammar, GrammarError, parse
from embedded_model.wording import Wording

CORPUS = Path(__file__).resolve().parent.parent / "corpus"
KINDS = ("howto", "what", "command", "difference", "error", "capital", "fact", "talk")

_PHRASINGS_SHARE = 2.0
"""Weight of the phrasings in `phrasings/`, beside the 1.6 that an entry's own have."""
_WORD = re.compile(r"[a-z]{3,14}")
_Model = TypeVar("_Model", bound=BaseModel)


class CorpusError(ValueError):
    """Raised when a corpus file does not hold what it should; names the file and the entry."""


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A question that only makes sense after its answer, with what is said then."""

    asks: tuple[Grammar, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Revision:
    """The answer rewritten after a note such as "shorter"; `kind` is the group of notes."""

    kind: str
    notes: tuple[Grammar, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with all its phrasings."""

    id: str
    topic: str
    kind: str
    text: str
    asks: tuple[Grammar, ...]
    weights: tuple[float, ...]
    follow_ups: tuple[FollowUp, ...]
    revisions: tuple[Revision, ...]
    setup: str
    run: bool


@dataclass(frozen=True, slots=True)
class Unknowns:
    """Questions of one sort that are outside the ground, and how that is admitted.

    `framed` are outside subjects in the very templates of the known questions, so that the way of
    asking never tells the one from the other.
    """

    id: str
    answer: str
    asks: tuple[Grammar, ...]
    framed: tuple[Grammar, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Corpus:
    answers: tuple[Answer, ...]
    talk: tuple[Answer, ...]
    unknowns: tuple[Unknowns, ...]
    listening: ListeningWords
    revision_frames: tuple[Grammar, ...]
    wording: Wording
    lexicon: tuple[str, ...]
    """Every word of some length that is in an answer or a question, in lower case, sorted."""

    def by_id(self) -> dict[str, Answer]:
        return {answer.id: answer for answer in (*self.answers, *self.talk)}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _FollowFile(_Strict):
    ask: str | tuple[str, ...]
    answer: str


class _ReviseFile(_Strict):
    note: str | tuple[str, ...]
    answer: str


class _EntryFile(_Strict):
    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    answer: str = Field(min_length=1)
    say: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    scope: tuple[str, ...] | None = None
    setup: str = ""
    run: bool = True
    follow: tuple[_FollowFile, ...] = ()
    revise: tuple[_ReviseFile, ...] = ()


class _TopicFile(_Strict):
    scope: tuple[str, ...] = ("",)
    howto: tuple[_EntryFile, ...] = ()
    what: tuple[_EntryFile, ...] = ()
    command: tuple[_EntryFile, ...] = ()
    difference: tuple[_EntryFile, ...] = ()
    error: tuple[_EntryFile, ...] = ()
    capital: tuple[_EntryFile, ...] = ()
    fact: tuple[_EntryFile, ...] = ()
    talk: tuple[_EntryFile, ...] = ()


class _TemplateFile(_Strict):
    kinds: dict[str, tuple[str, ...]]
    follow: dict[str, tuple[str, ...]]
    note: dict[str, tuple[str, ...]]
    revision_frames: tuple[str, ...]


class _UnknownFile(_Strict):
    class Group(_Strict):
        id: str
        answer: str
        asks: tuple[str, ...]
        share: float = Field(default=1.0, gt=0)
        say: dict[str, tuple[str, ...]] = {}
        scope: tuple[str, ...] = ("",)

    lists: dict[str, tuple[str, ...]] = {}
    group: tuple[Group, ...]


class _OutsideFile(RootModel[dict[str, tuple[str, ...]]]):
    """More words for the lists of `unknown.toml`."""


class _PhrasingsFile(RootModel[dict[str, tuple[str, ...]]]):
    """More whole phrasings, by the id of the answer in the topic of the same name."""


class _SynonymFile(_Strict):
    groups: tuple[tuple[str, ...], ...]
    dropped: tuple[str, ...]


class ListeningWords(_Strict):
    """What can be told in a conversation, and how it is told and asked for."""

    class Told(_Strict):
        things: tuple[str, ...]
        values: tuple[str, ...]

    told: tuple[Told, ...]
    statements: tuple[str, ...]
    acknowledgements: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    missing: str
    changes: tuple[str, ...]
    repeats: tuple[str, ...]
    lists: dict[str, tuple[str, ...]]
    chatter: tuple[str, ...] = ()


def load_corpus(root: Path = CORPUS) -> Corpus:
    """Read every file of the corpus.

    Raises:
        CorpusError: a file cannot be parsed, a field is missing or unknown, an id is used twice.
    """
    templates = _read(root / "templates.toml", _TemplateFile)
    answers: list[Answer] = []
    for path in sorted((root / "topics").glob("*.toml")):
        answers.extend(_topic(path, templates))
    seen: set[str] = set()
    for answer in answers:
        if answer.id in seen:
            raise CorpusError(f"the id {answer.id!r} is used twice")
        seen.add(answer.id)
    synonyms = _read(root / "synonyms.toml", _SynonymFile)
    unknowns = _unknowns(root, templates)
    return Corpus(
        answers=tuple(answer for answer in answers if answer.kind != "talk"),
        talk=tuple(answer for answer in answers if answer.kind == "talk"),
        unknowns=unknowns,
        listening=_read(root / "listening.toml", ListeningWords),
        revision_frames=tuple(_parse(text, "templates") for text in templates.revision_frames),
        wording=Wording(synonyms.groups, synonyms.dropped),
        lexicon=_lexicon(answers, unknowns),
    )


def _lexicon(answers: Sequence[Answer], unknowns: Sequence[Unknowns]) -> tuple[str, ...]:
    grammars = [grammar for answer in answers for grammar in answer.asks]
    grammars += [grammar for group in unknowns for grammar in group.asks]
    words = {word for grammar in grammars for word in grammar.words()}
    for answer in answers:
        words.update(_WORD.findall(answer.text.lower()))
    return tuple(sorted(words))


def _topic(path: Path, templates: _TemplateFile) -> list[Answer]:
    file = _read(path, _TopicFile)
    more_path = path.parent.parent / "phrasings" / path.name
    more = _read(more_path, _PhrasingsFile).root if more_path.exists() else {}
    answers = []
    for kind in KINDS:
        for entry in getattr(file, kind):
            where = f"{path.name}, {entry.id}"
            asks = _asks(kind, entry, file.scope, templates, where)
            others = more.get(entry.id, ())
            asks += [(_parse(text, where), _PHRASINGS_SHARE / len(others)) for text in others]
            answers.append(
                Answer(
                    id=f"{path.stem}/{entry.id}",
                    topic=path.stem,
                    kind=kind,
                    text=entry.answer.strip(),
                    asks=tuple(grammar for grammar, _ in asks),
                    weights=tuple(weight for _, weight in asks),
                    follow_ups=tuple(
                        FollowUp(_named(f.ask, templates.follow, where), f.answer.strip())
                        for f in entry.follow
                    ),
                    revisions=tuple(
                        Revision(
                            r.note if isinstance(r.note, str) else "",
                            _named(r.note, templates.note, where),
                            r.answer.strip(),
                        )
                        for r in entry.revise
                    ),
                    setup=entry.setup,
                    run=entry.run,
                )
            )
    if strange := more.keys() - {answer.id.partition("/")[2] for answer in answers}:
        raise CorpusError(f"{more_path}: no answer has the id {sorted(strange)[0]!r}")
    return answers


def _asks(
    kind: str,
    entry: _EntryFile,
    file_scope: tuple[str, ...],
    templates: _TemplateFile,
    where: str,
) -> list[tuple[Grammar, float]]:
    """Phrasings with weights: `say` in templates weighs 1, `also` 0.6, or 1 where it is alone."""
    scope = _alternation(entry.scope if entry.scope is not None else file_scope)
    asks: list[tuple[Grammar, float]] = []
    for subject in entry.say:
        framed = _framed(kind, subject, scope, templates, where)
        asks += [(grammar, 1.0 / (len(entry.say) * len(framed))) for grammar in framed]
    share = 0.6 if entry.say else 1.0
    for text in entry.also:
        asks.append((_parse(text.replace("<scope>", scope), where), share / len(entry.also)))
    if not asks:
        raise CorpusError(f"{where}: there is no phrasing (`say` or `also`)")
    return asks


def _framed(
    kind: str, subject: str, scope: str, templates: _TemplateFile, where: str
) -> list[Grammar]:
    """A subject in every template of its kind."""
    frames = templates.kinds.get(kind, ())
    if not frames:
        raise CorpusError(f"{where}: the kind {kind!r} has no templates, use `also`")
    grammars = []
    for frame in frames:
        text = frame.replace("<scope>", scope)
        if kind == "difference":
            left, right = subject.split(" / ")
            text = text.replace("<a>", left).replace("<b>", right)
        else:
            text = text.replace("<subject>", subject)
        grammars.append(_parse(text, where))
    return grammars


def _unknowns(root: Path, templates: _TemplateFile) -> tuple[Unknowns, ...]:
    file = _read(root / "unknown.toml", _UnknownFile)
    outside = _read(root / "outside.toml", _OutsideFile).root
    if strange := outside.keys() - file.lists.keys():
        raise CorpusError(f"outside.toml extends no list of unknown.toml: {sorted(strange)[0]!r}")
    lists = {name: (*words, *outside.get(name, ())) for name, words in file.lists.items()}
    groups = []
    for group in file.group:
        where = f"unknown.toml, {group.id}"
        framed = [
            grammar
            for kind, subjects in group.say.items()
            for subject in subjects
            for grammar in _framed(
                kind, _fill(subject, lists), _alternation(group.scope), templates, where
            )
        ]
        asks = tuple(_parse(_fill(ask, lists), where) for ask in group.asks)
        groups.append(Unknowns(group.id, group.answer.strip(), asks, tuple(framed), group.share))
    return tuple(groups)


def _alternation(texts: tuple[str, ...]) -> str:
    return "{" + "|".join(texts) + "}"


def _named(
    value: str | tuple[str, ...], groups: dict[str, tuple[str, ...]], where: str
) -> tuple[Grammar, ...]:
    """Phrasings given in place, or by the name of a shared group."""
    if isinstance(value, str):
        if value not in groups:
            raise CorpusError(f"{where}: no group {value!r} in templates.toml")
        value = groups[value]
    return tuple(_parse(text, where) for text in value)


def _fill(text: str, lists: dict[str, tuple[str, ...]]) -> str:
    """Replace `<name>` by the alternation of that list."""
    for _ in range(2):  # the words of a list may name another list
        for name, words in lists.items():
            text = text.replace(f"<{name}>", _alternation(words))
    return text


def _parse(text: str, where: str) -> Grammar:
    try:
        return parse(text)
    except GrammarError as error:
        raise CorpusError(f"{where}: {error}") from error


def _read(path: Path, model: type[_Model]) -> _Model:
    try:
        return model.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise CorpusError(f"{path}: {error}") from error
