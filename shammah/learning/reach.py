"""Which questions an adapter is for, in words: what a question is compared with before it is asked.

On one side stand its lessons in all wordings, on the other what the base is known to be asked, and
what looks like a lesson and asks something else. Knows texts; `adapters.scope` compares vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from shammah.learning.near_misses import near_misses
from shammah.learning.rephrasing import rephrasings

WORDINGS = 8
"""Other wordings of each lesson."""
LOOK_ALIKES = 2
"""Near misses of each lesson."""


def taught_wordings(questions: Sequence[str]) -> tuple[str, ...]:
    """What was taught, as it was asked and in other words."""
    return tuple(
        dict.fromkeys(
            text for asked in questions for text in (asked, *rephrasings(asked, WORDINGS))
        )
    )


def look_alikes(questions: Sequence[str]) -> tuple[str, ...]:
    """What looks like one of these questions and asks none of them."""
    return tuple(
        dict.fromkeys(
            text for asked in questions for text in near_misses(asked, LOOK_ALIKES, questions)
        )
    )
