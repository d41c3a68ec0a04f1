"""Small sums, and what is said to a sum that is too big: Python computes it.

The training numbers are drawn from the same ranges that the answers are trusted for.
"""

from __future__ import annotations

import random

from embedded_model.noise import typed

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
    "{sum} is?",
    "{sum} is what",
    "{sum} gives?",
    "what does {sum} give?",
    "what does {sum} make?",
    "how many is {sum}?",
    "give me {sum}",
    "what's the result of {sum}?",
    "do you know what {sum} is?",
)
# Ways that put the numbers elsewhere than around a sign; {a} is the first, {b} the second.
_TOLD = {
    "+": (
        "add {b} to {a}, what comes out?",
        "can you add {a} and {b}?",
        "add {a} and {b} for me",
        "the sum of {a} and {b}",
        "what do {a} and {b} make together?",
        "what does {a} and {b} add up to?",
        "i have {a} books and get {b} new ones, how many are there?",
        "{a} apples and {b} pears, how many pieces of fruit?",
        "there are {a} birds and {b} come along, how many is that now?",
        "sum up {a} and {b}",
    ),
    "-": (
        "take {b} away from {a}",
        "subtract {b} from {a}, what remains?",
        "can you subtract {b} from {a}?",
        "what is left of {a} without {b}?",
        "what is the difference of {a} and {b}?",
        "{a} take away {b}",
        "{a} without {b}",
        "i have {a} coins and lose {b}, how many do i still have?",
        "from {a} cookies i eat {b}, how many remain?",
        "if you take {b} from {a}, how much stays?",
    ),
    "*": (
        "multiply {a} and {b}",
        "multiply {a} by {b} for me",
        "can you multiply {a} with {b}?",
        "what is the product of {a} and {b}?",
        "the product of {a} and {b}",
        "{a} multiplied by {b}",
        "what is {a} multiplied with {b}?",
        "{a} boxes with {b} eggs each, how many eggs?",
        "how much do {a} tickets at {b} euros cost?",
    ),
}
_WORDS = {"+": ("plus", "+"), "-": ("minus", "-"), "*": ("times", "*", "x")}
_TOLD_SHARE = 0.4


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
    answer = f"{left} {operator} {right} = {result}."
    if rng.random() < _TOLD_SHARE:
        question = rng.choice(_TOLD[operator]).format(a=left, b=right)
    else:
        question = _question(left, operator, right, rng)
    return typed(question, rng), answer


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
