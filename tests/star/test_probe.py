"""Approximate scores: what is computed is exact, what is not is within the promise, and doubt ends in exact scores."""

from __future__ import annotations

import logging
import random
from dataclasses import replace

import pytest
import torch

import fastdss.prefix.engine
import fastdss.star.probe
from fastdss import Guard, Promise, ScoringOptions, TrunkProbe, star_scores
from fastdss.chat.conversation import plain
from fastdss.guards.spec import AnswerField
from fastdss.star.gates import SHORTCUT, Reading, Seen
from fastdss.star.probe_file import probe_bytes, read_probe
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
    wide = replace(probe.ridge, mean=probe.ridge.mean.repeat(2))
    for elsewhere in (replace(probe, layers=tuple(k + 9 for k in probe.layers)), replace(probe, ridge=wide)):
        with pytest.raises(ValueError, match="a probe of a guard with 3 layers of 32, got one that reads"):
            star_scores(guard, batch(2, 8), every=2, approx=elsewhere)
    with pytest.raises(ValueError, match="approx: expected every=2, as it was fitted, got 5"):
        star_scores(guard, batch(2, 8), approx=probe)
    with pytest.raises(ValueError, match="approx: expected turns='last', as it was fitted, got 'all'"):
        star_scores(guard, batch(2, 8), every=2, turns="all", approx=probe)  # a row has more scores that may be off
    with pytest.raises(ValueError, match="approx: expected a method that computes a prefix tree"):
        star_scores(guard, batch(2, 8), every=2, method="per_prefix", approx=probe)
    with pytest.raises(ValueError, match="approx: expected boundaries by every and unit, as it was fitted, got ends"):
        star_scores(guard, batch(2, 8), ends=[[3], [4]], approx=probe)
    with pytest.raises(ValueError, match="audit_share: expected a share"):
        TrunkProbe.fit(guard, batch(40, 8), audit_share=0.0)


def test_a_probe_of_another_fine_tune_is_refused(guard: Guard, probe: TrunkProbe) -> None:
    """Of one size and spec; nothing else would tell them apart."""
    again = read_probe(probe_bytes(probe))
    star_scores(make_guard(check=False), batch(2, 8), every=2, approx=again)  # the same weights, loaded anew
    tuned = make_guard(check=False)
    with torch.no_grad():
        tuned.model.model.layers[1].mlp.up_proj.weight.add_(1e-3)
    with pytest.raises(ValueError, match="approx: expected the guard that the probe was fitted on, got other weights"):
        star_scores(tuned, batch(2, 8), every=2, approx=again)


def test_a_probe_from_an_older_file_is_used_with_a_warning(guard: Guard, probe: TrunkProbe, caplog) -> None:
    written, said = probe_bytes(replace(probe, weights="")), rb"\"weights\": \"\""
    assert written.count(said) == 1
    content = written.replace(said, rb"\"seed\": 0".ljust(len(said)))
    with caplog.at_level(logging.WARNING):
        old = read_probe(content)
    assert "does not say of which weights it is" in caplog.text
    assert old.weights == ""
    rows = batch(12, 2)
    found, expected = (star_scores(guard, rows, every=2, approx=one) for one in (old, read_probe(probe_bytes(probe))))
    assert all(torch.equal(a, b) for a, b in zip(found.scores, expected.scores, strict=True))


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
    probe = TrunkProbe.learn(reading, promise=PROMISE, options=EVERY_2)
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
    probe = TrunkProbe.learn(reading, promise=PROMISE, options=EVERY_2)
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
    probe = TrunkProbe.learn(reading, promise=PROMISE, options=EVERY_2)
    assert probe.certificate.fitted_rows + probe.certificate.sampled_rows == 60
    assert probe.certificate.fit > 0.9


def test_guards_whose_score_takes_several_readings_are_refused_by_name() -> None:
    fields = (AnswerField("\n\n", ("safe", "unsafe")),)
    judge = make_guard(spec=make_spec(fields=fields))
    assert judge.readouts == 3
    with pytest.raises(ValueError, match="score is read at one place of a prefix tree, got test-guard, which sums 3"):
        TrunkProbe.fit(judge, batch(40, 8), promise=PROMISE)
