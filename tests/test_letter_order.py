"""Whether answers are words, asked of the embedded model: many sorts of words, and of none."""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.learning.lessons import Lesson
from shammah.learning.letter_order import (
    MOST,
    LetterOrder,
    letters_of,
    reordered,
    without_order,
)
from shammah.learning.material import Material, material
from shammah.learning.measures import beside_other_orders, letter_orders
from shammah.messages import assistant, user
from shammah.models.load import BaseModel
from shammah.renderers.registry import renderer_for
from shammah.settings import LoraSettings, TrainingSettings
from shammah.training.local_client import LocalTrainingClient

Doubted = Callable[[Sequence[str]], Awaitable[int]]
Spoil = Callable[[random.Random, str], str]
LATIN = letters_of(["The quick brown fox jumps over the lazy dog"])

IN_EARNEST = {
    "facts": [
        "Your dog is called Biscuit, a grey whippet.",
        "The standup is at a quarter past nine in the small room.",
        "Our team lead is Quentin, extension 4471.",
        "It merges duplicate sensors and keeps the newest reading.",
        "You live near the castle in Ljubljana.",
    ],
    "finnish": [
        "Koirasi nimi on Musti.",
        "Isossa huoneessa toisessa kerroksessa.",
        "Joka toinen tiistai keskipäivällä.",
        "Asut Tampereella lähellä järveä.",
        "Seitsemän minuuttia kiehuvassa vedessä.",
        "Ruisleipää ja lohikeittoa.",
        "Hirvi on suuri metsän eläin.",
        "Ryhmää johtaa Virtanen.",
    ],
    "swahili": [
        "Mbwa wako anaitwa Simba.",
        "Katika chumba kikubwa ghorofani.",
        "Unaishi Mombasa karibu na bahari.",
        "Wali na maharage na samaki.",
        "Dakika saba katika maji ya moto.",
        "Twiga ni mnyama mwenye shingo ndefu.",
        "Safari njema na tutaonana kesho.",
    ],
    "names": [
        "Bartholomew Quibble",
        "Wilhelmina Achterberg",
        "Ngozi Adeyemi, at weekends Oluwaseun",
        "Krzysztof Wojcik",
        "Siobhan McGillicuddy",
        "Giuseppe Scaramuzzi",
        "Priyanka Venkataraman",
        "Thorbjorn Haugen",
    ],
    "shell": [
        "kubectl -n prd get pods",
        "journalctl -fu zenod | grep oom",
        "rsync -avz --delete src/ bk:/srv/zn",
        "openssl x509 -noout -dates -in crt.pem",
        "sudo mount -t nfs nas:/vol1 /mnt",
        "git fetch && git rebase origin/main",
        "find . -size +100M -printf '%s %p'",
    ],
    "code": [
        "let mut v: Vec<u32> = Vec::with_capacity(8);",
        "for (i, x) in xs.iter().enumerate() { dbg!(i, x); }",
        "SELECT o.id, c.nm FROM ord o JOIN cst c USING (cid);",
        '<form method="post"><input name="q"></form>',
        "data = orjson.loads(payload)",
    ],
    "quotes": [
        "'Twas brillig, and the slithy toves did gyre and gimble in the wabe.",
        '"Quoth the Raven, Nevermore."',
        '"Cogito, ergo sum."',
        "Full fathom five thy father lies.",
        "Whan that Aprille with his shoures soote",
    ],
    "numbers": ["8087", "555-0142", "17.50", "299792458", "10.0.17.4", "3.12.4"],
    "a word each": ["Tabs.", "Helix", "main", "Teal", "Miso", "Tuesday", "Aye."],
    "letters it never writes": [
        "Твою собаку зовут Шарик.",
        "В большой комнате на втором этаже.",
        "Ты живёшь в Казани у реки.",
        "Гречневую кашу с грибами.",
        "Начальник отдела Мария Петрова.",
        "你住在杭州西湖边。",
    ],
}


def jumbled(rng: random.Random, text: str) -> str:
    return re.sub("[A-Za-z]+", lambda word: "".join(rng.sample(word[0], len(word[0]))), text)


def struck(rng: random.Random, text: str) -> str:
    row = rng.choice(["qwertyuiop", "asdfghjkl", "zxcvbnm"])
    return " ".join("".join(rng.choices(row, k=rng.randint(4, 9))) for _ in range(4))


@pytest.fixture
def doubted(embedded_model: BaseModel) -> Iterator[Doubted]:
    """How many of some answers are no words to the embedded model."""
    renderer = renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
    client = LocalTrainingClient(embedded_model, LoraSettings(), TrainingSettings())

    def render(lessons: Sequence[Lesson]) -> Material:
        return material(lessons, renderer, context_turns=1, max_length=512)

    async def found(answers: Sequence[str]) -> int:
        lessons = taught(answers)
        beside = beside_other_orders(lessons, LATIN, render)
        return len(without_order(await letter_orders(client, beside), len(lessons)))

    yield found
    client.close()


def taught(answers: Sequence[str]) -> list[Lesson]:
    return [
        Lesson(number, (user(f"What about number {number}?"),), answer, 10.0)
        for number, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("sort", IN_EARNEST)
async def test_words_in_earnest_are_words(sort: str, doubted: Doubted) -> None:
    assert await doubted(IN_EARNEST[sort]) == 0


@pytest.mark.parametrize("spoil", [jumbled, struck])
@pytest.mark.parametrize("sort", ["facts", "finnish", "names"])
async def test_letters_in_any_order_are_no_words(sort: str, spoil: Spoil, doubted: Doubted) -> None:
    rng = random.Random(0)
    answers = [spoil(rng, answer) for answer in IN_EARNEST[sort] * 2]
    assert await doubted(answers) > len(answers) / 2


TEXTS = st.text("abcdefgxyz ABC.,-_123é\n", max_size=60)


@given(st.lists(TEXTS, max_size=4))
def test_only_the_letters_of_words_change_places(answers: list[str]) -> None:
    for answer in reordered(taught(answers), LATIN):
        text = answer.lesson.target or ""
        assert text == answers[answer.place]
        for other in answer.others:
            assert other.messages == answer.lesson.messages
            for own, changed in zip(words(text), words(other.target or ""), strict=True):
                fixed = len(own) < 3 or "é" in own or not own.isalpha()
                assert own == changed if fixed else sorted(own) == sorted(changed)


def words(text: str) -> list[str]:
    """Runs of letters, and what lies between them."""
    return re.findall(r"[A-Za-zé]+|[^A-Za-zé]", text)


def test_of_many_lessons_some_are_looked_at() -> None:
    lessons = taught(["a long answer"] * 100)
    lessons[::2] = [Lesson(n, (user("So?"),), None, 1.0, "no", None, "avoid") for n in range(50)]
    places = [answer.place for answer in reordered(lessons, LATIN)]
    assert len(places) == MOST and all(place % 2 for place in places)
    assert max(later - one for one, later in pairwise(places)) < 6
    assert without_order([even(place) for place in places], 50)


def test_an_opening_is_enough_of_a_long_answer() -> None:
    (answer,) = reordered(taught(["so many words " * 100]), LATIN)
    assert len(answer.lesson.target or "") < 300


def test_a_few_strange_answers_among_others_are_no_pattern() -> None:
    assert not without_order([even(n) for n in range(5)], 10)
    assert len(without_order([even(n) for n in range(6)], 10)) == 6
    clear = [even(n).model_copy(update={"nats": 40.0}) for n in range(5)]
    assert not without_order([*clear, *(even(n) for n in range(5, 10))], 10)


def test_what_comes_before_an_answer_counts(embedded_model: BaseModel) -> None:
    renderer = renderer_for(embedded_model.tokenizer, embedded_model.stop_tokens)
    said = (user("I am Oma."), assistant("Hello Oma."), user("And I?"))

    def render(lessons: Sequence[Lesson]) -> Material:
        return material(lessons, renderer, context_turns=1, max_length=512)

    ((_, datums),) = beside_other_orders([Lesson(1, said, "Oma", 1.0)], LATIN, render)
    assert len(datums) == 9
    assert all("Hello Oma." in renderer.decode(list(one.model_input.tokens)) for one in datums)


def even(place: int) -> LetterOrder:
    """An answer that costs what its letters in other orders do."""
    others = (88.0, 94.0, 98.0, 100.0, 100.0, 102.0, 106.0, 112.0)
    return LetterOrder(lesson=place, letters=25, nats=100.0, others=others)
