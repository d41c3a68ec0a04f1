"""The corpus and the shipped embedded model's files: whole, consistent, and apart from held-out."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from embedded_model.corpus import Answer, Corpus, load_corpus  # noqa: E402
from embedded_model.encoding import Encoder  # noqa: E402
from embedded_model.evaluation import admits  # noqa: E402
from embedded_model.grammar import Grammar, GrammarError, escape, parse, tidy  # noqa: E402
from embedded_model.listening import Listener  # noqa: E402
from embedded_model.packing import IGNORE, Batch, Shape, pack  # noqa: E402
from embedded_model.rows import RowMaker  # noqa: E402
from embedded_model.training import Progress, Recipe, learning_rate, train  # noqa: E402
from embedded_model.wording import Wording  # noqa: E402

HELD_OUT = ROOT / "tests" / "data" / "embedded"
SHIPPED = ROOT / "shammah" / "models" / "embedded"
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    from tokenizers import Tokenizer

    return Encoder(Tokenizer.from_file(str(SHIPPED / "tokenizer.json")))


def held_out(name: str) -> list[dict[str, str]]:
    text = (HELD_OUT / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def plain(question: str) -> str:
    return " ".join(question.lower().split()).rstrip("?!. ")


def texts_of(answer: Answer) -> list[str]:
    return [
        answer.text,
        *(follow.answer for follow in answer.follow_ups),
        *(revision.answer for revision in answer.revisions),
    ]


def test_every_file_parses_and_says_something_of_its_own(corpus: Corpus) -> None:
    answers = corpus.by_id()
    assert len(corpus.answers) >= 800
    assert sum(bool(answer.follow_ups) for answer in answers.values()) >= 150
    assert sum(bool(answer.revisions) for answer in answers.values()) >= 300
    assert len(answers) == len(corpus.answers) + len(corpus.talk)
    texts = [answer.text for answer in answers.values()]
    assert len(set(texts)) == len(texts)
    rng = random.Random(1)
    for answer in answers.values():
        assert sum(grammar.count() for grammar in answer.asks) >= 4, answer.id
        for grammar in answer.asks:
            sample = grammar.sample(rng)
            assert sample and not re.search(r"<\w+>", sample), (answer.id, sample)
            assert not re.search(r"\{[^{}]*\|", sample), (answer.id, sample)
    for group in corpus.unknowns:
        assert admits(group.answer), group.id


def test_held_out_questions_are_not_in_the_training_grammars(corpus: Corpus) -> None:
    answers = corpus.by_id()
    known = []
    for name in ("answers", "small_talk", "follow_ups"):
        for row in held_out(name):
            grammars = answers[row["id"]].asks
            if "asked" in row:
                followed = answers[row["id"]].follow_ups
                (grammars,) = (f.asks for f in followed if f.answer == row["reference"])
            question = plain(row["question"])
            known.extend((row["id"], question) for grammar in grammars if says(grammar, question))
    for row in held_out("revisions"):
        question = plain(row["question"])
        (revision,) = (r for r in answers[row["id"]].revisions if r.kind == row["note"])
        frames = [text for frame in corpus.revision_frames for text in frame.expand()]
        notes = [text for note in revision.notes for text in note.expand()]
        known.extend(
            (row["id"], question)
            for frame in frames
            for note in notes
            if plain(frame.replace("<note>", note)) == question
        )
    unknown = [grammar for group in corpus.unknowns for grammar in (*group.asks, *group.framed)]
    for row in held_out("unknown"):
        question = plain(row["question"])
        known.extend(("unknown", question) for grammar in unknown if says(grammar, question))
    assert not known


def says(grammar: Grammar, question: str) -> bool:
    """Whether a grammar yields the question, whatever stands at its end."""
    return any(grammar.matches(question + end) for end in ("", "?", "!", "."))


@pytest.mark.parametrize(
    ("name", "questions"),
    [
        ("answers", 400),
        ("small_talk", 60),
        ("unknown", 150),
        ("follow_ups", 100),
        ("revisions", 60),
        ("listening", 60),
        ("sums", 30),
    ],
)
def test_held_out_sets_are_large_and_without_repeats(name: str, questions: int) -> None:
    rows = held_out(name)
    assert len(rows) >= questions
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == len(rows)
    if name == "answers":
        assert len({row["id"] for row in rows}) >= 300


def test_python_snippets_run(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    count = 0
    for answer in corpus.answers:
        for text in texts_of(answer):
            for source in CODE.findall(text):
                code = compile(source, answer.id, "exec")
                count += 1
                if answer.run:
                    names: dict[str, object] = {"__name__": "__main__"}
                    exec(answer.setup, names)
                    exec(code, names)
    assert count > 80


def test_fences_are_closed(corpus: Corpus) -> None:
    for answer in corpus.by_id().values():
        for text in texts_of(answer):
            assert text.count("```") % 2 == 0, answer.id
            assert text == text.strip(), answer.id


def test_rows_repeat_from_a_seed_and_end_with_an_answer(corpus: Corpus) -> None:
    first, second = RowMaker(corpus, 3), RowMaker(corpus, 3)
    other = RowMaker(corpus, 4)
    rows = [first.row(number) for number in range(60)]
    assert rows == [second.row(number) for number in range(60)]
    assert rows != [other.row(number) for number in range(60)]
    for row in rows:
        roles = [role for role, _ in row if role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_what_was_told_is_what_is_answered(corpus: Corpus) -> None:
    listener = Listener(corpus.listening, corpus.lexicon)
    for seed in range(300):
        rng = random.Random(seed)
        fact = listener.fact(rng)
        statement, acknowledgement = listener.tell(fact, rng)
        question, answer = listener.ask(fact, rng)
        assert fact.value in statement
        assert fact.value in acknowledgement
        assert fact.value in answer
        assert fact.value not in question or fact.value in fact.thing
        assert admits(listener.ask_missing(fact, rng)[1])


def test_packed_conversations_do_not_see_each_other(corpus: Corpus, encoder: Encoder) -> None:
    maker = RowMaker(corpus, 5)
    batch, used = pack(Shape(4, 256), lambda number: encoder.row(maker.row(number)), 0)
    again, _ = pack(Shape(4, 256), lambda number: encoder.row(maker.row(number)), 0)
    assert used > 4
    assert batch.input_ids.equal(again.input_ids)
    for row in range(4):
        positions = batch.positions[row].tolist()
        start = 0
        for at, position in enumerate(positions):
            if position == 0:
                start = at
            seen = (batch.mask[row, 0, at] == 0).nonzero().flatten().tolist()
            if batch.labels[row, at] != IGNORE:
                assert seen == list(range(start, at + 1))
                # A label is the next token of the same conversation.
                assert batch.labels[row, at] == batch.input_ids[row, at + 1]
                assert positions[at + 1] == position + 1


def test_a_cut_conversation_ends_within_its_last_answer(corpus: Corpus, encoder: Encoder) -> None:
    maker = RowMaker(corpus, 5)
    kept = [maker.kept_tokens(number, "short") for number in range(40)]
    assert None in kept and any(kept)
    assert all(maker.kept_tokens(number, "long") is None for number in range(40))
    row = maker.row(1)
    whole, cut = encoder.row(row), encoder.row(row, 3)
    before = encoder.prompt(row[:-1])
    assert cut.ids[: len(before)] == before == whole.ids[: len(before)]
    answer = (*encoder.ids(row[-1][1]), encoder.end)[:3]
    assert cut.ids[len(before) : len(before) + 3] == answer
    assert cut.learn[len(before) : len(before) + 3] == (True, True, True)
    assert not any(cut.learn[len(before) + 3 :])


def test_another_wording_changes_only_words_that_do_not_matter(corpus: Corpus) -> None:
    wording = Wording((("folder", "directory"),), ("the", "a"))
    rng = random.Random(0)
    seen = {
        wording.other("how do i list the folder `folder` of /folder a b", rng) for _ in range(400)
    }
    assert "how do i list the directory `folder` of /folder a b" in seen
    assert "how do i list folder `folder` of /folder b" in seen
    assert not any("`directory`" in text or "/directory" in text for text in seen)


@given(st.text(max_size=60))
def test_escaped_text_stands_for_itself(text: str) -> None:
    grammar = parse(escape(text))
    assert grammar.count() == 1
    assert list(grammar.expand()) == [tidy(text)]


def test_grammar_expands_samples_and_matches_alike() -> None:
    grammar = parse("{how do i|how {can|could} i} flip {a|the|} list{?|}")
    phrasings = set(grammar.expand())
    assert len(phrasings) == grammar.count() == 3 * 3 * 2
    assert "how could i flip list?" in phrasings
    rng = random.Random(0)
    assert {grammar.sample(rng) for _ in range(500)} == phrasings
    assert all(grammar.matches(phrase) for phrase in phrasings)
    assert grammar.matches("How can I  flip the list")
    assert not grammar.matches("how do i sort a list?")
    for broken in ("{a|b", "a}", "{a|{b}"):
        with pytest.raises(GrammarError):
            parse(broken)


def test_tokenizer_loads_as_saved(encoder: Encoder, corpus: Corpus) -> None:
    """AutoTokenizer must cut text exactly as the file that the model was trained with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    assert len(tokenizer) == 4096
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    for answer in corpus.by_id().values():
        ids = tokenizer.encode(answer.text, add_special_tokens=False)
        assert tuple(ids) == encoder.ids(answer.text), answer.id
        assert tokenizer.decode(ids) == answer.text
    eight, zero = encoder.ids("8")[0], encoder.ids("0")[0]
    assert encoder.ids("8080") == (eight, zero, eight, zero)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8", max_codepoint=0x2FF), max_size=80))
def test_tokenizer_round_trips(encoder: Encoder, text: str) -> None:
    import unicodedata

    text = unicodedata.normalize("NFC", text)
    assert encoder._tokenizer.decode(list(encoder.ids(text)), skip_special_tokens=False) == text


def test_template_renders_a_prefix_of_every_continuation(corpus: Corpus, encoder: Encoder) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    row = RowMaker(corpus, 9).row(2, "medium")
    messages = [{"role": role, "content": content} for role, content in row]
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    assert tuple(whole) == encoder.row(row).ids
    for count in range(1, len(messages)):
        part = tokenizer.apply_chat_template(messages[:count], return_dict=False)
        assert whole[: len(part)] == part
        if messages[count]["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(
                messages[:count], add_generation_prompt=True, return_dict=False
            )
            assert whole[: len(prompt)] == prompt
            assert tuple(prompt) == encoder.prompt(row[:count])


def tiny_model() -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=4096,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def test_training_learns_and_a_resumed_run_ends_where_the_whole_one_does(
    corpus: Corpus, encoder: Encoder, tmp_path: Path
) -> None:
    maker = RowMaker(corpus, 1)
    losses: list[str] = []
    recipe = Recipe(steps=8, learning_rate=2e-2, checkpoint_seconds=0.0)

    def batches(step: int, position: int) -> tuple[Batch, int]:
        return pack(Shape(2, 256), lambda number: encoder.row(maker.row(number)), position)

    def interrupted(step: int, position: int) -> tuple[Batch, int]:
        if step == 5:
            raise KeyboardInterrupt
        return batches(step, position)

    def run(model: Any, source: Any, folder: str, resume: bool) -> Progress:
        return train(
            model, source, recipe, tmp_path / folder, resume=resume, threads=(1,), say=losses.append
        )

    whole = tiny_model()
    straight = run(whole, batches, "whole", False)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model(), interrupted, "parts", False)
    parts = tiny_model()
    resumed = run(parts, batches, "parts", True)

    assert (resumed.step, resumed.position) == (straight.step, straight.position)
    assert resumed.loss == straight.loss < math.log(4096)
    for name, value in whole.state_dict().items():
        assert parts.state_dict()[name].equal(value), name


def test_schedule_warms_up_and_falls_to_its_floor() -> None:
    recipe = Recipe(steps=100, warmup=0.1, floor=0.02)
    rates = [learning_rate(recipe, step / 100) for step in range(101)]
    assert rates[0] < 0.02
    assert rates.index(max(rates)) == 10
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.02)
    with pytest.raises(ValueError):
        Recipe(steps=1, minutes=1.0)


def test_shipped_folder_is_complete_and_loads() -> None:
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    card = json.loads((SHIPPED / "card.json").read_text(encoding="utf-8"))
    with safe_open(SHIPPED / "model.safetensors", framework="pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == card["parameters"] <= 20_000_000
    assert model.config.model_type == "qwen2"
    assert model.generation_config.eos_token_id == model.config.eos_token_id
    assert not model.generation_config.do_sample
    assert "# Shammah embedded" in (SHIPPED / "README.md").read_text(encoding="utf-8")
