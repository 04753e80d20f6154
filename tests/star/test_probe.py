"""Approximate scores: what is computed is exact, what is not is within the promise, and doubt ends in exact scores."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
import torch

import fastdss.prefix.engine
import fastdss.star.probe
from fastdss import Guard, Promise, ScoringOptions, TrunkProbe, star_scores
from fastdss.chat.conversation import plain
from fastdss.guards.spec import AnswerField
from fastdss.prefix.engine import tree_logits
from fastdss.prefix.tree import build_tree
from fastdss.star.course import Course, Persistence
from fastdss.star.gates import SHORTCUT, Gating, Past, Reading, Seen, no_verdict
from fastdss.star.probe_file import probe_bytes, read_probe
from fastdss.star.promise import Audit
from fastdss.star.scoring import Judged
from tests.support.builders import make_guard, make_spec

TEXT = "call her at home today the number is five and seven please write to me soon or never"
PROMISE = Promise(tolerance=0.2, at_most=0.1, confidence=0.9)  # 22 sampled rows can show it
EVERY_2 = ScoringOptions(every=2)


def batch(rows: int, seed: int) -> dict[str, list[str]]:
    generator = random.Random(seed)
    responses = [" ".join(generator.choices(TEXT.split(), k=generator.randint(4, 14))) + "." for _ in range(rows)]
    return {"prompt": [generator.choice(["Hello", "Where is it?"]) for _ in range(rows)], "response": responses}


@pytest.fixture(scope="module")
def guard() -> Guard:
    return make_guard()


@pytest.fixture(scope="module")
def probe(guard: Guard) -> TrunkProbe:
    return TrunkProbe.fit(guard, batch(160, 1), promise=PROMISE, options=EVERY_2, audit_share=0.1)[0]


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


def test_what_is_computed_is_exact_and_the_rest_is_marked(guard: Guard, probe: TrunkProbe, monkeypatch) -> None:
    assert probe.certificate.threshold is not None, str(probe.certificate)
    rows, tokens = batch(40, 2), []
    run = fastdss.prefix.engine.Runner.run

    def counted(self, segments, store, read=None):
        tokens.append(sum(len(segment.ids) for segment in segments))
        return run(self, segments, store, read)

    monkeypatch.setattr(fastdss.prefix.engine.Runner, "run", counted)
    exact = star_scores(guard, rows, every=2)
    whole = sum(tokens)
    tokens.clear()
    near = star_scores(guard, rows, every=2, approx=probe)
    assert sum(tokens) < 0.8 * whole
    marks = torch.cat([item.exact for item in near])
    a, b = torch.cat(exact.scores), torch.cat(near.scores)
    assert torch.allclose(a[marks], b[marks], rtol=0, atol=1e-6)
    assert 0.2 < (~marks).float().mean() < 1
    off = [bool(((x - y).abs() > PROMISE.tolerance).any()) for x, y in zip(exact.scores, near.scores, strict=True)]
    assert sum(off) <= 10  # 4 of 40 are promised
    assert all(item.exact is None for item in exact)


def test_the_same_rows_are_audited_in_every_order(guard: Guard, probe: TrunkProbe) -> None:
    rows = batch(60, 3)
    turned = {name: values[::-1] for name, values in rows.items()}
    audited = [
        [bool(item.exact.all()) for item in star_scores(guard, given, every=2, approx=probe)]
        for given in (rows, turned)
    ]
    assert any(audited[0])
    assert not all(audited[0])
    assert audited[0] == audited[1][::-1]


def test_a_probe_that_errs_is_found_out_and_everything_is_computed(guard: Guard, probe: TrunkProbe, caplog) -> None:
    wrong = TrunkProbe.fit(guard, batch(160, 1), promise=PROMISE, options=EVERY_2, audit_share=0.5)[0]
    wrong.ridge = replace(wrong.ridge, offset=wrong.ridge.offset + 3)
    rows = batch(60, 4)
    with caplog.at_level(logging.WARNING):
        found = star_scores(guard, rows, every=2, approx=wrong)
    assert "audited rows speak against the approximation" in caplog.text
    assert wrong.audit.disagrees
    exact = star_scores(guard, rows, every=2)
    assert all(torch.equal(a, b) for a, b in zip(found.scores, exact.scores, strict=True))
    assert all(item.exact is None for item in found)
    assert wrong.gate([guard], [], [], EVERY_2) is None


def test_a_guard_whose_trunk_knows_nothing_ends_in_exact_scores(guard: Guard, monkeypatch) -> None:
    course, generator = TrunkProbe.course, torch.Generator().manual_seed(0)

    def clueless(self, places, states, shortcuts):
        found = course(self, places, states, shortcuts)
        found.logits = 3 * torch.randn(len(places), generator=generator).double()
        return found

    monkeypatch.setattr(TrunkProbe, "course", clueless)
    probe, scored = TrunkProbe.fit(guard, batch(120, 5), promise=PROMISE)
    assert probe.certificate.threshold is None
    assert "nothing is approximated" in str(probe.certificate)
    assert "R^2 is" in str(probe.certificate)
    rows = batch(12, 6)
    near, exact = star_scores(guard, rows, approx=probe), star_scores(guard, rows)
    assert all(torch.equal(a, b) for a, b in zip(near.scores, exact.scores, strict=True))
    assert len(scored) == 120


def test_too_small_a_sample_promises_nothing(guard: Guard) -> None:
    probe, _ = TrunkProbe.fit(guard, batch(60, 7))
    assert probe.certificate.threshold is None
    assert "it takes 149 sampled rows at least" in str(probe.certificate)
    with pytest.raises(ValueError, match="expected 12 rows with branches to fit on, got"):
        TrunkProbe.fit(guard, batch(8, 7))


def test_what_would_spare_hardly_anything_is_not_done(guard: Guard, probe: TrunkProbe, monkeypatch) -> None:
    spared = probe.certificate.approximated
    monkeypatch.setattr(fastdss.star.probe, "_LEAST_SPARED", spared + 0.01)
    again, scored = TrunkProbe.fit(guard, batch(160, 1), promise=PROMISE, options=EVERY_2, audit_share=0.1)
    assert again.certificate.threshold is None
    assert again.certificate.approximated == spared
    assert f"would spare {spared:.0%} of the scores only" in str(again.certificate)
    assert again.gate([guard], [], [], EVERY_2) is None
    assert all(bool(item.exact.all()) for item in scored)


def test_what_cannot_be_approximated_is_refused(guard: Guard, probe: TrunkProbe) -> None:
    with pytest.raises(ValueError, match="approx: expected one guard, got 2"):
        star_scores([guard, guard], batch(2, 8), approx=probe)
    other = make_guard(check=False)
    other.spec = replace(other.spec, name="another")
    with pytest.raises(ValueError, match="approx: expected a probe of another, got one of"):
        star_scores(other, batch(2, 8), approx=probe)
    with pytest.raises(ValueError, match="approx: expected every=2, as it was fitted, got 5"):
        star_scores(guard, batch(2, 8), approx=probe)
    with pytest.raises(ValueError, match="approx: expected a method that computes a prefix tree"):
        star_scores(guard, batch(2, 8), every=2, method="per_prefix", approx=probe)
    with pytest.raises(ValueError, match="approx: expected boundaries by every and unit, as it was fitted, got ends"):
        star_scores(guard, batch(2, 8), ends=[[3], [4]], approx=probe)
    with pytest.raises(ValueError, match="audit_share: expected a share"):
        TrunkProbe.fit(guard, batch(40, 8), audit_share=0.0)


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


def test_a_reading_keeps_what_belongs_to_each_score(guard: Guard) -> None:
    judged = [Judged(plain([{"role": "assistant", "content": "x"}]), 0, row, row) for row in range(2)]
    reading = Reading()
    gate = reading.gate([guard], judged, [2, 3], EVERY_2)
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


@pytest.mark.parametrize(("case", "used"), [("known", SHORTCUT), ("noise", 0), ("one missing", 0)])
def test_shortcuts_are_used_where_they_predict_better(case: str, used: int) -> None:
    reading, generator = Reading(), torch.Generator().manual_seed(0)
    reading.layers = (1,)
    states = torch.randn(70, 3, 2, 5, generator=generator)
    near = 3 * torch.randn(70, 3, generator=generator)
    scores = torch.sigmoid(states[..., 0, 0] + (0 if case == "noise" else near))
    for k in range(70):
        judged = Judged(plain([{"role": "assistant", "content": str(k)}]), 0, k, k)
        shortcuts = dict(enumerate(near[k].tolist()))
        if case == "one missing" and k == 5:
            del shortcuts[1]
        reading.seen.append(Seen(judged, scores[k], dict(enumerate(states[k])), shortcuts))
    probe = TrunkProbe.learn(reading, guard_name="x", promise=PROMISE, options=EVERY_2)
    assert probe.shortcut == used
    assert (probe.certificate.fit > 0.95) is (case != "one missing")
    found = probe.course(range(3), list(states[0]), near[0])
    assert torch.allclose(found.values.float(), scores[0], atol=0.05) is (case != "one missing")
    assert read_probe(probe_bytes(probe)).shortcut == used


def test_errors_are_those_of_rows_that_were_left_out() -> None:
    """With as many features as boundaries, those of the rows that were fitted are nearly none."""
    generator = torch.Generator().manual_seed(0)
    reading = Reading()
    reading.layers = (1,)
    for k in range(70):
        judged = Judged(plain([{"role": "assistant", "content": str(k)}]), 0, k, k)
        states = torch.randn(3, 2, 40, generator=generator)
        noise = torch.randn(1, generator=generator) + 0.2 * torch.randn(3, generator=generator)
        reading.seen.append(Seen(judged, torch.sigmoid(states[:, 0, 0] + noise), dict(enumerate(states))))
    probe = TrunkProbe.learn(reading, guard_name="x", promise=PROMISE, options=EVERY_2)
    assert 0.6 < probe.persistence.scale < 1.5  # the ridge's own standard deviations are from rows left out as well
    assert probe.persistence.share >= 0.8
    assert read_probe(probe_bytes(probe)).persistence == probe.persistence


def test_every_turn_of_an_audited_conversation_is_computed(guard: Guard) -> None:
    """Rows of the promise are conversations, whatever turns of them are judged."""
    generator = random.Random(9)
    say = lambda: " ".join(generator.choices(TEXT.split(), k=8))  # noqa: E731
    roles = ["user", "assistant"] * 2
    chats = [[{"role": role, "content": say()} for role in roles] for _ in range(80)]
    options = replace(EVERY_2, turns="all")
    probe, exact = TrunkProbe.fit(guard, {"messages": chats}, promise=PROMISE, options=options, audit_share=0.3)
    assert probe.certificate.fitted_rows + probe.certificate.sampled_rows == 80
    assert len(exact) == 160
    assert probe.certificate.threshold is not None, str(probe.certificate)
    more = [[{"role": role, "content": say()} for role in roles] for _ in range(40)]
    near = star_scores(guard, {"messages": more}, options=options, approx=probe)
    audited = [item.missed is not None for item in near]
    assert audited[::2] == audited[1::2]
    assert 0 < sum(audited) < len(audited)
    assert probe.audit.rows == sum(audited) // 2


def test_rows_without_scores_are_no_part_of_a_fit(guard: Guard) -> None:
    reading = Reading()
    judged = [Judged(plain([{"role": "assistant", "content": str(k)}]), 0, k, k) for k in range(70)]
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(70, 3, 2, 5, generator=generator)  # of one layer, with means
    scores = torch.sigmoid(states[..., 0, 0])
    scores[::7, 1] = float("nan")
    reading.layers = (1,)
    reading.seen = [Seen(judged[k], scores[k], dict(enumerate(states[k]))) for k in range(70)]
    probe = TrunkProbe.learn(reading, guard_name="x", promise=PROMISE, options=EVERY_2)
    assert probe.certificate.fitted_rows + probe.certificate.sampled_rows == 60
    assert probe.certificate.fit > 0.9


def test_guards_whose_score_takes_several_readings_are_refused_by_name() -> None:
    fields = (AnswerField("\n\n", ("safe", "unsafe")),)
    judge = make_guard(spec=make_spec(fields=fields))
    assert judge.readouts == 3
    with pytest.raises(ValueError, match="score is read at one place of a prefix tree, got test-guard, which sums 3"):
        TrunkProbe.fit(judge, batch(40, 8), promise=PROMISE)
