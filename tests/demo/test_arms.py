"""Which tokens each arm trains on, and that all arms see the same rows in the same order."""

from types import SimpleNamespace

import pytest
import torch

from fastdss.demo.arms import METHODS, Arm, choose_arms, labelled_scores
from fastdss.demo.conversations import ENDING, training_conversations
from fastdss.demo.leaks import find_leaks
from fastdss.demo.training import Recipe, batches, star_weights
from tests.support.scored import by_fields


def scored(rows, every=5):
    """Scores of 0.5 at the ends of every fifth word."""
    ends = []
    for row in rows:
        words = [i for i, c in enumerate(row.response + " ") if c == " "]
        ends.append([*words[every - 1 : -1 : every], words[-1]])
    scores = [[0.5] * len(e) for e in ends]
    histories = [[{"role": "user", "content": row.prompt}] for row in rows]
    return by_fields(scores, ends, histories, [row.response for row in rows])


def test_arms_without_verdicts_run_once_and_the_others_in_every_setting():
    arms = choose_arms(["none", "sft", "rs", "dss-k2", "sft"], ["guard", "labelled"])
    names = [arm.name for arm in arms]
    assert names == ["none", "sft", "rs/guard", "dss-k2/guard", "rs/labelled", "dss-k2/labelled"]
    assert Arm("dss-forward", "guard").kl == "forward"
    assert Arm("rs", "guard").kl is None
    assert len({Arm(method).title for method in METHODS}) == len(METHODS)


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        (["stf"], ["guard"], "arms: expected some of none, sft, .*dss-k2.*, got stf"),
        (["rs"], ["gard"], "settings: expected some of guard, labelled, got gard"),
        ([], ["guard"], "arms: expected some of .*, got none of them"),
    ],
)
def test_unknown_names_are_errors_that_list_the_known_ones(methods, settings, message):
    with pytest.raises(ValueError, match=message):
        choose_arms(methods, settings)


def test_labelled_verdicts_turn_at_the_first_detail_and_miss_a_third_of_the_whole_responses():
    rows = training_conversations(6, 24, 0)
    before = scored(rows)
    labelled = labelled_scores(before, rows)
    missed = 0
    for row, ends, scores in zip(rows, labelled.ends, labelled.scores, strict=True):
        safe = [score > 0.5 for score in scores.tolist()]
        if row.kind == "benign":
            assert all(safe)
            continue
        begin = find_leaks(row.response)[0][1]
        assert safe[:-1] == [end <= begin for end in ends[:-1]]
        assert row.part_at(ends[-1] - 1) == ENDING
        missed += safe[-1]
    assert missed == 8
    assert all(score.eq(0.5).all() for score in before.scores)  # the guard's own scores are left alone


def test_static_filter_and_sft_weights_come_from_whole_responses():
    scores = SimpleNamespace(final=lambda: torch.tensor([0.9, 0.5, 0.1, float("nan")]))
    rows = [SimpleNamespace(input_ids=[1] * n) for n in (2, 3, 4, 5)]
    kept = star_weights(Arm("rs", "guard"), scores, None, rows)
    assert [w.tolist() for w in kept] == [[1.0] * 2, [1.0] * 3, [0.0] * 4, [0.0] * 5]  # no score is no acceptance
    assert all(w.eq(1).all() for w in star_weights(Arm("sft"), None, None, rows))


def test_batches_are_half_and_half_and_use_every_row_before_any_twice():
    kinds = ["benign"] * 12 + ["poisoned"] * 12
    steps = batches(kinds, Recipe(steps=6, batch_size=4, seed=5))
    assert all(sorted(kinds[i] for i in batch) == ["benign"] * 2 + ["poisoned"] * 2 for batch in steps)
    assert sorted(i for batch in steps for i in batch) == list(range(24))
    assert steps == batches(kinds, Recipe(steps=6, batch_size=4, seed=5))
    assert steps != batches(kinds, Recipe(steps=6, batch_size=4, seed=6))
    assert all(len(batch) == 5 for batch in batches(kinds, Recipe(steps=6, batch_size=5)))
