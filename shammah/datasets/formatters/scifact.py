"""SciFact: scientific claims verified against abstracts (Wadden et al. 2020, arXiv 2004.14974).

Rows are claims, `{id, claim, evidence, cited_doc_ids}`; the abstracts' sentences are in
`corpus.jsonl`, which is looked for beside the claims. Of the corpus only where each abstract begins
is held.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from pydantic import Field

from shammah.datasets.formatters.base import ChatExample, RowModel, checked, choice
from shammah.datasets.readers.lines import jsonl_line
from shammah.errors import DatasetError, InputError
from shammah.messages import assistant, user
from shammah.ports.dataset_store import Origin, Row

LABELS = ("SUPPORT", "CONTRADICT", "NOT_ENOUGH_INFO")
NEUTRAL = 2
"""Sentences shown of an abstract without evidence: about as many as evidence has (1.8 in the
training claims), so that their number gives little away."""

_WHY = ", and give the claims and documents behind it"
_DOC_ID = re.compile(rb'\s*\{\s*"doc_id"\s*:\s*(\d+)\s*[,}]')
_WORD = re.compile(r"\w+")


class _Rationale(RowModel):
    sentences: list[int]
    label: Literal["SUPPORT", "CONTRADICT"]


class _Claim(RowModel):
    id: int
    claim: str
    evidence: dict[str, list[_Rationale]] | None = None
    cited_doc_ids: list[int] = Field(default_factory=list)


class _Abstract(RowModel):
    doc_id: int
    title: str
    abstract: list[str]


@dataclass(slots=True)
class SciFact:
    """Claim and sentences of abstracts -> SUPPORT, CONTRADICT or NOT_ENOUGH_INFO.

    A claim without evidence is shown with sentences of the abstracts it cites, and the answer is
    NOT_ENOUGH_INFO. A test claim, which has neither evidence nor abstracts, is a prompt alone.

    `metadata`: `id`, `label`, `evidence` (document id -> the sets of sentence numbers each of which
    is enough by itself), `cited` (document ids) and `shown` (document id -> sentence numbers).
    Sentences are numbered from 0, as in the data.

    Options:
        corpus: the file of abstracts, where it is not `corpus.jsonl` beside the claims.
        show: `evidence` (default) shows the sentences of all evidence sets, and of an abstract
            without evidence the two that share most words with the claim; `abstract` shows every
            sentence of every cited abstract.
        answer: `label` (default) answers with the label alone; `claims` with the graph behind it,
            too: the claim, each document with evidence as a claim that cites it, and whether it
            supports or refutes.
    """

    corpus: str = ""
    show: str = "evidence"
    answer: str = "label"
    _corpora: dict[Path, _Corpus] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        choice("show", self.show, "evidence", "abstract")
        choice("answer", self.answer, "label", "claims")

    def __call__(self, row: Row) -> ChatExample:
        claim = checked(_Claim, row)
        label = _label(claim)
        shown = self._shown(claim, row.origin)
        parts = [_document(abstract, sentences) for abstract, sentences in shown]
        asked = "Do the sentences below" if parts else "Do published results"
        question = (
            f"{asked} support or contradict the claim? Answer with SUPPORT, CONTRADICT or "
            f"NOT_ENOUGH_INFO{_WHY if self.answer == 'claims' else ''}.\n\nClaim: {claim.claim}"
        )
        metadata = {
            "id": claim.id,
            "label": label,
            "evidence": {
                int(document): [rationale.sentences for rationale in rationales]
                for document, rationales in (claim.evidence or {}).items()
            },
            "cited": list(claim.cited_doc_ids),
            "shown": {abstract.doc_id: sentences for abstract, sentences in shown},
        }
        said = label if label is None or self.answer == "label" else _graph(claim, label)
        answer = () if said is None else (assistant(said),)
        return ChatExample((user("\n\n".join([question, *parts])), *answer), metadata=metadata)

    def _shown(self, claim: _Claim, origin: Origin) -> list[tuple[_Abstract, list[int]]]:
        evidence = {int(document): sets for document, sets in (claim.evidence or {}).items()}
        if self.show == "abstract":
            wanted = list(dict.fromkeys([*claim.cited_doc_ids, *evidence]))
        else:
            wanted = list(evidence or dict.fromkeys(claim.cited_doc_ids))
        if not wanted:
            return []
        corpus = self._open(Path(self.corpus or Path(origin.name).parent / "corpus.jsonl"))
        shown = []
        for document in wanted:
            abstract = corpus.abstract(document)
            for sentence in (n for each in evidence.get(document, []) for n in each.sentences):
                if not 0 <= sentence < len(abstract.abstract):
                    raise InputError(f"document {document} has no sentence {sentence}")
            if self.show == "abstract":
                sentences = list(range(len(abstract.abstract)))
            elif evidence:
                sentences = sorted({n for each in evidence[document] for n in each.sentences})
            else:
                sentences = _nearest(claim.claim, abstract.abstract)
            shown.append((abstract, sentences))
        return shown

    def _open(self, path: Path) -> _Corpus:
        path = path.expanduser()
        if path not in self._corpora:
            self._corpora[path] = _Corpus(path)
        return self._corpora[path]


class _Corpus:
    """Abstracts by document id, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets: dict[int, int] = {}
        try:
            self._file: IO[bytes] = path.open("rb")
        except OSError as error:
            raise DatasetError(
                f"SciFact's corpus {path} cannot be read: {error.strerror}.",
                backend="local files",
                hint="It belongs beside the claims; the option corpus names another place.",
            ) from error
        offset = 0
        for number, line in enumerate(self._file, start=1):
            found = _DOC_ID.match(line)
            if found is not None:
                self._offsets[int(found[1])] = offset
            elif line.strip():
                self._offsets[self._parse(line, number).doc_id] = offset
            offset += len(line)

    def abstract(self, document: int) -> _Abstract:
        """Raises InputError where there is none."""
        if document not in self._offsets:
            raise InputError(f"document {document} is not in {self._path}")
        self._file.seek(self._offsets[document])
        return self._parse(self._file.readline(), None)

    def _parse(self, line: bytes, number: int | None) -> _Abstract:
        origin = Origin(str(self._path))
        try:
            return checked(_Abstract, Row.of(jsonl_line(line) or {}, origin, number or 0))
        except InputError as error:
            place = origin.place(number) if number else str(self._path)
            raise InputError(f"{place}: {error.message}") from None


def matches(row: Row) -> bool:
    return {"claim", "evidence", "cited_doc_ids"} <= row.keys()


def _label(claim: _Claim) -> str | None:
    """The verdict; None where the data gives none."""
    if claim.evidence is None:
        return None
    labels = {each.label for sets in claim.evidence.values() for each in sets}
    if len(labels) > 1:
        raise InputError("its evidence both supports and contradicts it")
    return labels.pop() if labels else LABELS[-1]


def _graph(claim: _Claim, label: str) -> str:
    """The label, and why, as a graph of claims (`structure.claims`)."""
    lines = [label, f"CLAIM[c1]: {' '.join(claim.claim.split())}"]
    word = "supports" if label == "SUPPORT" else "refutes"
    for number, document in enumerate(claim.evidence or {}, start=2):
        lines.append(f"CLAIM[c{number}]: It is in [Document {document}].")
        lines.append(f"RELATION: c{number} {word} c1")
    return "\n".join(lines)


def _document(abstract: _Abstract, sentences: list[int]) -> str:
    lines = [f"[{number}] {abstract.abstract[number].strip()}" for number in sentences]
    return "\n".join([f"Document {abstract.doc_id}: {abstract.title.strip()}", *lines])


def _nearest(claim: str, sentences: list[str]) -> list[int]:
    """The sentences that share most words with the claim; the earlier where equally many."""
    words = set(_WORD.findall(claim.lower()))
    shared: Mapping[int, int] = {
        number: len(words & set(_WORD.findall(sentence.lower())))
        for number, sentence in enumerate(sentences)
    }
    return sorted(sorted(shared, key=lambda number: -shared[number])[:NEUTRAL])
