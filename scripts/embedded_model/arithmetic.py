"""Small sums, and what is said to a sum that is too big: Python computes it.

The training numbers are drawn from the same ranges that the answers are trusted for.
"""

from __future__ import annotations

import random

_FRAMES = (
    "what is {sum}?",
    "what's {sum}?",
    "{sum}?",
    "{sum}",
    "{sum} =",
    "how much is {sum}?",
    "calculate {sum}",
    "compute {sum}",
    "can you work out {sum}?",
    "tell me {sum}",
)
_WORDS = {"+": ("plus", "+"), "-": ("minus", "-"), "*": ("times", "*", "x")}


def small_sum(rng: random.Random) -> tuple[str, str]:
    """A question and its answer, with a result that fits in the head."""
    operator = rng.choice("++-**")
    if operator == "*":
        left, right = rng.randint(0, 12), rng.randint(0, 12)
        result = left * right
    elif operator == "+":
        left, right = rng.randint(0, 20), rng.randint(0, 20)
        result = left + right
    else:
        left = rng.randint(0, 20)
        right = rng.randint(0, left)
        result = left - right
    return _question(left, operator, right, rng), f"{left} {operator} {right} = {result}."


def big_sum(rng: random.Random) -> tuple[str, str]:
    """A question with big numbers; the answer hands it to Python."""
    operator = rng.choice("+-*/")
    left, right = rng.randint(100, 99999), rng.randint(21, 9999)
    question = _question(left, operator, right, rng)
    answer = (
        "I only do small sums in my head. Let Python do this one:\n\n"
        f"```python\nprint({left} {operator} {right})\n```"
    )
    return question, answer


def _question(left: int, operator: str, right: int, rng: random.Random) -> str:
    word = rng.choice(_WORDS.get(operator, ("divided by", "/")))
    blank = "" if word in "+-*/" and rng.random() < 0.4 else " "
    return rng.choice(_FRAMES).format(sum=f"{left}{blank}{word}{blank}{right}")
