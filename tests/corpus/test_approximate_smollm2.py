"""A real model whose trunk does not know its verdict, SmolLM2 asked zero-shot: from hidden states alone nothing can be
promised, and all scores are exact at their price. Its shortcuts do know a little, and then the promise holds."""

import random
import time

import pytest

import fastdss.prefix.engine
from fastdss import Promise
from fastdss.corpus.run import score_dataset
from fastdss.corpus.scorer import StarScorer
from fastdss.corpus.store import read_scores
from fastdss.star.gates import SHORTCUT, Reading
from tests.star.test_smollm2 import guard  # noqa: F401  (a fixture)
from training.held_out import benign, poisoned

pytest.importorskip("pyarrow", reason="needs the [score] extra")
# 30 rows are drawn, of 60 at least: 11 can show it. With a tolerance of 0.02 a fourth of the scores would be told by
# the computed ones beside them.
PROMISE = Promise(tolerance=0.005, at_most=0.2, confidence=0.9)


def rows_of(count, words):
    generator = random.Random(0)
    made = [(poisoned if i % 2 else benign)(5, i) for i in range(count)]
    starts = [generator.randrange(max(1, len(item.response.split()) - words)) for item in made]
    texts = [" ".join(item.response.split()[s : s + words]) for item, s in zip(made, starts, strict=True)]
    return [{"id": str(i), "prompt": made[i].turns[-1], "response": text} for i, text in enumerate(texts)]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_zero_shot_costs_no_more_than_a_tenth_above_exact_scores(tmp_path, guard, monkeypatch):  # noqa: F811
    tokens, run = [], fastdss.prefix.engine.Runner.run

    def counted(self, segments, store, read=None):
        tokens.append(sum(len(segment.ids) for segment in segments))
        return run(self, segments, store, read)

    monkeypatch.setattr(fastdss.prefix.engine.Runner, "run", counted)
    rows, scorer = rows_of(60, 10), StarScorer(guard, gemm="default")
    spent, told, scores = {}, {}, {}
    assert len(scorer.guards) == 1  # loaded, so that the check of a new guard is no part of the price
    for way, promise, shortcut in (("exact", None, 0), ("trunk", PROMISE, 0), ("shortcuts", PROMISE, SHORTCUT)):
        monkeypatch.setattr(Reading, "shortcut", shortcut)
        begun, before = time.process_time(), sum(tokens)
        told[way] = score_dataset(rows, tmp_path / way, scorer, approx=promise).get("approx")
        spent[way] = time.process_time() - begun, sum(tokens) - before
        scores[way] = [turn.scores for row in read_scores(tmp_path / way) for turn in row.turns]
    assert told["trunk"]["words"].startswith("All scores are exact: nothing is approximated")
    assert told["trunk"]["certificate"]["fit"] < 0.9
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(scores["exact"], scores["trunk"], strict=True))
    pairs = zip(scores["exact"], scores["shortcuts"], strict=True)
    off = sum(a != pytest.approx(b, abs=PROMISE.tolerance) for a, b in pairs)
    print(told["shortcuts"]["words"], off, "rows are off")
    assert off <= PROMISE.at_most * len(rows)
    for way in ("trunk", "shortcuts"):
        seconds, price = (after / before for before, after in zip(spent["exact"], spent[way], strict=True))
        print(f"{way}: tokens x {price:.3f}, time x {seconds:.3f}; R^2 {told[way]['certificate']['fit']:.2f}")
        assert price <= 1.1
        assert seconds <= 1.1
