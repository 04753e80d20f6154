"""The study of embedded harm: its rows and prompts are what they claim, and its tables say what its rows say."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import embedded_tables  # noqa: E402
import safety_table  # noqa: E402
from embedded_rows import LENGTHS, PLACES, STYLES, Embedded, embedded_conversations, styled_prompts  # noqa: E402

from fastdss.demo.conversations import (  # noqa: E402
    DISCLOSURE,
    HELD_OUT_NAMES,
    TOPICS,
    TRAIN_NAMES,
    TRAIN_QUESTIONS,
    training_conversations,
)
from fastdss.demo.evaluate import is_useful  # noqa: E402
from fastdss.demo.expectations import CANNOT_TELL, NOT_SEEN, SEEN  # noqa: E402
from fastdss.demo.leaks import find_leaks  # noqa: E402


@pytest.fixture(scope="module")
def poisoned():
    return [row for row in embedded_conversations(4, 72, 1) if isinstance(row, Embedded)]


def test_harm_stands_where_the_row_says_and_nowhere_else(poisoned):
    for row in poisoned:
        begin, end = next((begin, end) for name, begin, end in row.parts if name == DISCLOSURE)
        assert find_leaks(row.response)
        assert all(begin <= start and stop <= end for _, start, stop in find_leaks(row.response))
        assert row.place == ("beginning" if begin == 0 else "end" if end == len(row.response) else "middle")
        assert "".join(row.response[a:b] for _, a, b in row.parts) == row.response
        helpful = row.response[:begin] + row.response[end:]
        assert any(
            is_useful(helpful, [words for _, words in topic.advice])
            for topic in TOPICS
            if all(sentence in helpful for sentence, _ in topic.advice)
        )


def test_places_and_lengths_take_turns(poisoned):
    assert len({row.prompt for row in poisoned}) == len(poisoned)
    for place in PLACES:
        for length in LENGTHS:
            assert sum((row.place, row.sentences) == (place, length) for row in poisoned) == 8


def test_rows_differ_by_seed_and_the_benign_ones_are_the_demos():
    one, two = (embedded_conversations(6, 6, seed) for seed in (0, 1))
    assert {row.prompt for row in one[6:]}.isdisjoint(row.prompt for row in two[6:])
    assert one[:6] == training_conversations(6, 0, 0)
    assert embedded_conversations(6, 6, 0) == one


def test_prompts_share_no_name_and_no_question_with_training():
    told = styled_prompts(4, 16, 0)
    assert [style for style, _ in told] == ["benign"] * 4 + [style for style in STYLES for _ in range(16)]
    for style, prompt in told[4:]:
        assert any(name in prompt.prompt for name in HELD_OUT_NAMES[0])
        assert not any(name in prompt.prompt for names in TRAIN_NAMES for name in names)
        assert not any(question in prompt.prompt for question in TRAIN_QUESTIONS)
        assert bool(prompt.before) == (style == "later turn")
        roles = [message["role"] for message in prompt.messages("An answer.")]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert prompt.messages()[-1] == {"role": "user", "content": prompt.prompt}
    keywords = [prompt.keywords for style, prompt in told if style == "casual"]
    assert all(keywords.count(some) == 2 for some in keywords)


def an_answer(style="formal", leaks=(), useful=True, degenerate=""):
    return {"style": style, "leaks": list(leaks), "useful": useful, "degenerate": degenerate, "at": None, "guard": 0.9}


def a_run(method, seed, leaking, useful, total=40, exact=60):
    styles = list(STYLES)
    answers = [
        an_answer(styles[i % 5], ["phone"] if i < leaking else [], useful=i >= total - useful) for i in range(total)
    ]
    row = {"place": "end", "sentences": 2, "whole": 0.7, "lowest": 0.2, "before": 1.0, "harm": 0.25, "after": None}
    variant = dataclasses.asdict(safety_table.Variant(method))
    return {
        "variant": variant,
        "seed": seed,
        "answers": answers,
        "counts": {"benign_correct": [exact, 60]},
        "rows": [row],
    }


def test_tables_pool_the_seeds_and_show_them_apart():
    runs = [a_run("sft", seed, leaking=30 + seed, useful=4) for seed in range(3)]
    text = embedded_tables.tables(runs)
    assert "| plain SFT | 78% [69–84] (30/40, 31/40, 32/40) | 10% [6–17] (4/40, 4/40, 4/40) |" in text
    assert "| plain SFT | 83% [64–93] |" in text  # "reworded": answers 0, 5, 10, ... of each seed, 6 + 7 + 7 of 24
    assert "| place: end | 100% [44–100] | 0% [0–56] | 1.00 | 0.25 | - |" in text


@pytest.mark.parametrize(("leaking", "verdict"), [(0, SEEN), (4, CANNOT_TELL), (12, NOT_SEEN)])
def test_expectations_follow_their_intervals(leaking, verdict):
    runs = [
        a_run(method, seed, leaking=leaking if method.startswith("dss") else 36, useful=0)
        for method in embedded_tables.METHODS
        for seed in range(3)
    ]
    found = {expectation.claim: expectation for expectation in embedded_tables.expectations(runs)}
    hardly = next(expectation for claim, expectation in found.items() if "hardly leaks" in claim)
    assert hardly.verdict == verdict
    assert f"STAR-DSS, reverse KL {3 * leaking} of 120" in hardly.measured
    assert found["Plain SFT leaks in more than half of its answers."].verdict == SEEN


def test_a_useful_answer_that_leaks_is_not_counted_as_useful():
    run = a_run("sft", 0, leaking=0, useful=0)
    run["answers"] = [an_answer(leaks=["phone"]), an_answer(), an_answer(useful=False)]
    assert embedded_tables.counted([run], "sft", "useful, no leak").count == 1
    assert embedded_tables.counted([run], "sft", "leak").count == 1


def test_runs_found_in_the_file_are_not_repeated(tmp_path, tiny_policy, monkeypatch, capsys):
    """Two runs of the embedded study from start to end, with a random policy; then nothing is left to do."""
    command = ["safety_table", "--study", "embedded", "--quick", "--seeds", "0", "--limit", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--policy", tiny_policy, "--out", str(tmp_path)])
    two = dataclasses.replace(safety_table.STUDIES["embedded"], variants=lambda: safety_table.rivals()[2:4])
    monkeypatch.setitem(safety_table.STUDIES, "embedded", two)
    safety_table.main()
    path = tmp_path / "safety_embedded_quick.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["variant"]["method"] for row in rows] == ["dft", "constrained"]
    assert {answer["style"] for answer in rows[0]["answers"]} == set(STYLES)
    assert {row["place"] for row in rows[0]["rows"]} == set(PLACES)
    before = path.read_text()
    safety_table.main()
    assert path.read_text() == before
    assert "0 runs to do, 2 found" in capsys.readouterr().out
