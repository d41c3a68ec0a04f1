"""Documents that an answer cites: where their ids stand, and how right they are.

Knows text, no model and no data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

CITATION = (
    r"(?<!\w)\[((?:[Dd]oc(?:ument)?[ :#_-]{0,3})?[\w.:-]+(?:\s*[,;]\s*[\w.:-]+)*)\](?!\()"
    r"|\bDocument\s+#?(\w+)"
)
"""`[12]`, `[Document 12]`, `[12, 14]`, `Document 12`; no link, and no `CLAIM[c1]`."""
_WORD = re.compile(r"^[Dd]oc(?:ument)?[ :#_-]*(?=\w)")


@dataclass(frozen=True, slots=True)
class Citation:
    """An id as it is cited; `span` is where it stands: first character and the one after the
    last."""

    id: str
    span: tuple[int, int]


def citations(text: str, pattern: re.Pattern[str] | str = CITATION) -> Iterator[Citation]:
    """Every citation of a text, in its order.

    Args:
        pattern: what a citation looks like; the groups hold the ids, separated by commas.
    """
    for found in re.finditer(pattern, text):
        for group in range(1, found.re.groups + 1):
            for part in re.finditer(r"[^,;]+", found[group] or ""):
                word = part[0].strip()
                start = found.start(group) + part.start() + part[0].index(word)
                if identifier := _WORD.sub("", word):
                    end = start + len(word)
                    yield Citation(identifier, (end - len(identifier), end))


def cited_ids(text: str, pattern: re.Pattern[str] | str = CITATION) -> list[str]:
    """The ids that a text cites, each once, in the order of the text."""
    return list(dict.fromkeys(citation.id for citation in citations(text, pattern)))


def citation_measures(cited: int, gold: int, right: int, invalid: int) -> dict[str, float]:
    """Precision, recall, F1 and the rates of invalid and valid citations, from counts: documents
    cited, those that should be, those that are both, and those cited that were not shown."""
    precision = right / cited if cited else float(not gold)
    recall = right / gold if gold else 1.0
    both = precision + recall
    rate = invalid / cited if cited else 0.0
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "invalid_rate": rate,
        "valid": 1.0 - rate,
    }
