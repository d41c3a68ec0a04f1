"""GSM8K: grade-school word problems with worked answers (Cobbe et al. 2021, arXiv 2110.14168).

Rows are `{question, answer}`; an answer ends with `#### ` and the final number, and has calculator
annotations such as `<<48/2=24>>` in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shammah.datasets.formatters.base import ChatExample, choice, others, text
from shammah.errors import InputError
from shammah.messages import assistant, user
from shammah.ports.dataset_store import Row

_FINAL = re.compile(r"####\s*(\S[^\n]*?)\s*$")
_CALCULATION = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, slots=True)
class Gsm8k:
    """Question -> worked answer with its `####` line. `metadata["final"]` is the final number as
    text, without thousands separators and currency: what an answer is graded by.

    Options:
        calculator: `keep` (default) or `strip` the `<<...>>` annotations.
    """

    calculator: str = "keep"

    def __post_init__(self) -> None:
        choice("calculator", self.calculator, "keep", "strip")

    def __call__(self, row: Row) -> ChatExample:
        question, answer = text(row, "question"), text(row, "answer")
        final = final_number(answer)
        if final is None:
            raise InputError("the answer does not end with #### and a number")
        if self.calculator == "strip":
            answer = _CALCULATION.sub("", answer)
        metadata = {**others(row, "question", "answer"), "final": final}
        return ChatExample((user(question), assistant(answer)), metadata=metadata)


def matches(row: Row) -> bool:
    answer = row.get("answer")
    return "question" in row and isinstance(answer, str) and final_number(answer) is not None


def final_number(answer: str) -> str | None:
    """What stands after `####` at the end, without commas, `$` and a final point; None if nothing
    does. Serves for gold answers and for those of a model alike."""
    found = _FINAL.search(answer)
    if found is None:
        return None
    number = found[1].replace(",", "").lstrip("$").rstrip(".")
    return number if re.fullmatch(r"-?(\d+(\.\d+)?|\.\d+)", number) else None
