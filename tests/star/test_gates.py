"""Gates of approximate scores: rounds give what one pass gives, and each score is settled by what was known of it."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

import pytest
import torch

from fastdss import Promise, ScoringOptions
from fastdss.chat.conversation import plain
from fastdss.prefix.engine import tree_logits
from fastdss.prefix.tree import build_tree
from fastdss.star.course import Course, Persistence
from fastdss.star.gates import SHORTCUT, Gating, Past, Reading, no_verdict
from fastdss.star.promise import Audit
from fastdss.star.scoring import Judged
from tests.support.builders import make_guard

PROMISE = Promise(tolerance=0.2, at_most=0.1, confidence=0.9)


class Some:
    """A gate that asks for these scores, round by round."""

    shortcut = 0

    def __init__(self, rounds: list[set[int]]) -> None:
        self.rounds, self.wanted = rounds[::-1], set[int]().union(*rounds)
        self.seen, self.heard, self.known = dict[int, int](), dict[int, torch.Tensor](), dict[int, torch.Tensor]()

    def read(self, scores: list[int], states: torch.Tensor) -> None:
        assert states.shape[1] == len(scores)
        self.seen |= dict.fromkeys(scores, states.shape[0])

    def wants(self, score: int) -> bool:
        return score in self.seen

    def hear(self, scores: list[int], logits: torch.Tensor) -> None:
        self.heard |= dict(zip(scores, logits, strict=True))

    def asks(self, left: Collection[int]) -> Collection[int]:
        assert self.seen.keys() >= set(left)
        assert not self.known.keys() & set(left)
        while self.rounds:
            if wanted := self.rounds.pop() & set(left):
                return wanted
        return ()

    def told(self, scores: list[int], logits: torch.Tensor) -> None:
        assert not self.known.keys() & set(scores)
        self.known |= dict(zip(scores, logits, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("seed", range(4))
def test_branches_are_computed_as_without_a_gate_whatever_the_rounds(architecture: str, seed: int) -> None:
    judge = make_guard(architecture)
    generator = random.Random(seed)
    chat = [{"role": "user", "content": "Hello"}]
    texts = ("Call her today, or call him.", "Why not call them by name?", "It is 555 0100, I am sure...")
    renderings = [judge.encode_prefixes(chat, text, [4, 8, 14, 19, 26]) for text in texts]
    trees = [build_tree(rows[: generator.randint(2, 5)]) for rows in renderings]
    whole = tree_logits(judge.model, judge.token_ids, trees, [0, 0, 1])
    count = sum(tree.num_prefixes for tree in trees)
    rounds: list[set[int]] = [set() for _ in range(3)]  # early boundaries before late ones, and the other way round
    for k in range(count):
        if generator.random() < 0.7:
            generator.choice(rounds).add(k)
    gate = Some([wanted for wanted in rounds if wanted])
    some = tree_logits(judge.model, judge.token_ids, trees, [0, 0, 1], gate=gate)
    computed = torch.isfinite(some).all(1)
    on_trunk = {k for k in range(count) if bool(computed[k]) and k not in gate.wanted}
    assert torch.allclose(some[computed], whole[computed], rtol=0, atol=1e-6)
    assert all(torch.equal(logits, some[k]) for k, logits in gate.known.items())
    assert gate.known.keys() <= gate.wanted <= set(computed.nonzero()[:, 0].tolist())
    assert len(on_trunk) <= len(trees)  # the trunk's own verdict is there in any case
    assert gate.seen.keys() >= {k for k in range(count) if not computed[k]}
    assert set(gate.seen.values()) == {judge.model.config.num_hidden_layers + 1}


def test_means_are_over_the_boundaries_so_far_of_ones_own_response() -> None:
    """Also where a trunk comes in pieces, some boundaries have no branch, and a group starts again."""
    states = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
    past, found = Past([4, 5]), dict[int, torch.Tensor]()
    for scores in ([0, 1], [0, 1, 4], [3, 5, 6], [8]):
        found |= dict(zip(scores, past.added(scores, states[scores]), strict=True))
    for score, before in {0: [0], 1: [0, 1], 3: [0, 1, 3], 4: [4], 6: [4, 5, 6], 8: [4, 5, 6, 8]}.items():
        assert torch.equal(found[score][:2], states[score])
        assert torch.allclose(found[score][2:], states[before].mean(0), atol=1e-6)


def told(values: Sequence[float], spreads: Sequence[float], persistence: Persistence) -> Course:
    """A course with predicted scores, not logits."""
    logits = torch.logit(torch.tensor(values, dtype=torch.float64))
    return Course(persistence, logits, torch.tensor(spreads, dtype=torch.float64), torch.arange(len(values)))


class Told:
    """A probe whose predictions stand in the hidden states: a score, and its standard deviation."""

    layers, shortcut = (1,), 0

    def __init__(self, persistence: Persistence) -> None:
        self.persistence = persistence

    def course(self, places: Sequence[int], states: Sequence[torch.Tensor], shortcuts: torch.Tensor) -> Course:
        found = [state[0].tolist() for state in states]
        return told([value for value, _ in found], [spread for _, spread in found], self.persistence)


def test_a_gate_settles_what_it_predicted_row_by_row() -> None:
    """Two turns of row 0 are audited, the first of which is off; row 1 is approximated in part."""
    judged = [Judged(plain([{"role": "assistant", "content": "x"}]), 0, row, row) for row in (0, 0, 1)]
    audit = Audit(PROMISE)
    gate = Gating(
        Told(Persistence()), 0.1, PROMISE.tolerance, judged, [True, True, False], [1, 2, 2], audit, no_verdict
    )
    known = [[0.9, 0.01], [0.5, 0.01], [0.5, 3.0], [0.2, 3.0], [0.25, 0.01]]  # score 1 has no branch
    gate.read([0, 2, 3, 4], torch.tensor(known)[[0, 1, 3, 4]].expand(2, -1, -1))
    assert set(gate.asks([0, 2, 3, 4])) == {0, 2, 3}
    scores = torch.tensor([0.4, 0.7, 0.55, 0.8, float("nan")])
    settled = gate.settle(scores)
    assert [item.exact.tolist() for item in settled] == [[True], [True, True], [False, False]]
    assert [item.missed for item in settled] == [pytest.approx(0.5), pytest.approx(0.05), None]
    assert (audit.rows, audit.wrong) == (1, 1)


def test_a_computed_score_settles_those_beside_it() -> None:
    """What the gate approximates after a round is what the course of an audit says it would have been."""
    persistence, verdict = Persistence(0.95, 50.0), lambda logits: logits[:, 0].double()
    judged = [Judged(plain([{"role": "assistant", "content": "x"}]), 0, row, row) for row in (0, 1)]
    truth = torch.logit(torch.tensor([0.62, 0.6, 0.63, 0.61, 0.6, 0.62])).double()
    predicted = torch.tensor([[0.5, 0.5], [0.48, 0.5], [0.51, 0.6], [0.49, 0.5], [0.48, 0.5], [0.5, 0.5]])
    gate = Gating(Told(persistence), 0.08, 0.1, judged, [False, True], [6, 6], None, verdict)
    gate.read(list(range(12)), torch.cat([predicted, predicted]).expand(2, -1, -1))
    first = gate.asks(list(range(12)))
    assert set(first) == {2, *range(6, 12)}  # the most doubtful one, and all of the audited row
    gate.told(list(first), truth[[k % 6 for k in first]][:, None])
    assert not gate.asks([0, 1, 3, 4, 5])  # one tells enough about all
    scores = torch.sigmoid(truth).float().repeat(2)
    scores[[0, 1, 3, 4, 5]] = float("nan")
    near, audited = gate.settle(scores)
    assert near.exact.tolist() == [False, False, True, False, False, False]
    errors = (scores[:6] - torch.sigmoid(truth)).abs()
    assert audited.missed == pytest.approx(float(errors.max()), abs=1e-6)
    assert 0 < audited.missed < 0.03


def test_a_gate_forgets_a_course_that_begins_anew() -> None:
    """Memory ran out after a round: nothing that was told about the response counts any more."""
    judged = [Judged(plain([{"role": "assistant", "content": "x"}]), 0, 0, 0)]
    gate = Gating(Told(Persistence()), 0.05, 0.1, judged, [False], [2], None, lambda logits: logits[:, 0].double())
    states = torch.tensor([[0.5, 3.0], [0.5, 0.01]]).expand(2, -1, -1)
    for _ in range(2):
        gate.read([0, 1], states)
        assert gate.asks([0, 1]) == [0]
        gate.told([0], torch.tensor([[1.0]]))
        assert not gate.asks([1])


def test_a_score_that_failed_tells_nothing_and_is_not_approximated() -> None:
    judged = [Judged(plain([{"role": "assistant", "content": "x"}]), 0, 0, 0)]
    verdict = lambda logits: logits[:, 0].double()  # noqa: E731
    gate = Gating(Told(Persistence(0.9, 5.0)), 0.05, 0.1, judged, [False], [3], None, verdict)
    nan = float("nan")
    gate.read([0, 1, 2], torch.tensor([[0.5, 3.0], [nan, 0.01], [0.5, 0.01]]).expand(2, -1, -1))
    assert gate.asks([0, 1, 2]) == [1]  # its prediction is no number; those beside it wait
    gate.told([1], torch.tensor([[0.0]]))
    assert gate.asks([0, 2]) == [0]
    gate.told([0], torch.tensor([[nan]]))
    assert not gate.asks([2])
    scores = torch.tensor([nan, 0.5, nan])
    assert gate.settle(scores)[0].exact.tolist() == [True, True, False]
    assert scores[2] == pytest.approx(0.5)


def test_a_reading_keeps_what_belongs_to_each_score() -> None:
    judged = [Judged(plain([{"role": "assistant", "content": "x"}]), 0, row, row) for row in range(2)]
    reading = Reading()
    gate = reading.gate([make_guard()], judged, [2, 3], ScoringOptions())
    states = torch.arange(3 * 4 * 2, dtype=torch.float32).view(3, 4, 2)  # two layers and what goes into them
    gate.read([0, 2], states[:, :2])
    gate.read([4, 3], states[:, 2:])
    settled = gate.settle(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert all(bool(item.exact.all()) for item in settled)
    first, second = reading.seen
    assert first.scores.tolist() == pytest.approx([0.1, 0.2])
    assert second.scores.tolist() == pytest.approx([0.3, 0.4, 0.5])
    assert reading.layers == (1, 2)
    assert {k: value[:2].tolist() for k, value in first.states.items()} == {0: states[1:, 0].tolist()}
    assert {k: value[:2].tolist() for k, value in second.states.items()} == {
        0: states[1:, 1].tolist(),
        2: states[1:, 2].tolist(),
        1: states[1:, 3].tolist(),
    }
    assert torch.allclose(second.states[1][2:], states[1:, [1, 3]].mean(1))
    assert torch.allclose(second.states[2][2:], states[1:, 1:].mean(1))


class Listening:
    """A probe that believes its shortcuts."""

    layers, shortcut = (1,), SHORTCUT

    def course(self, places: Sequence[int], states: Sequence[torch.Tensor], shortcuts: torch.Tensor) -> Course:
        spreads = torch.tensor([float(state[0, 0]) for state in states], dtype=torch.float64)
        return Course(Persistence(), shortcuts, spreads, torch.tensor(list(places)))


def test_a_gate_knows_a_score_when_it_has_heard_the_shortcut() -> None:
    judged = [Judged(plain([{"role": "assistant", "content": "x"}]), 0, 0, 0)]
    gate = Gating(Listening(), 0.5, 0.1, judged, [False], [5], None, lambda logits: logits[:, 1].double())
    states = torch.tensor([[[0.0]] * 4, [[0.1], [9.0], [0.2], [0.1]]])
    gate.read([0, 1, 2, 4], states)
    assert [gate.wants(k) for k in range(5)] == [True, True, True, False, True]
    gate.hear([1, 0, 4], torch.tensor([[9.0, 1.0], [9.0, -3.0], [9.0, float("nan")]]))
    assert sorted(gate.asks([0, 1, 2, 4])) == [1, 2, 4]  # the first is sure, 1 is not, 2 unheard, 4 no number
    scores = torch.tensor([float("nan"), 0.5, 0.25, 0.75, 0.5])
    gate.told([1, 2, 4], torch.zeros(3, 2))
    assert gate.settle(scores)[0].exact.tolist() == [False, True, True, True, True]
    assert scores.tolist() == pytest.approx([1 / (1 + math.exp(3)), 0.5, 0.25, 0.75, 0.5])
