"""The paper's claims are held against the numbers: seen, not seen, or too little evidence to tell."""

import math
import re
from types import SimpleNamespace

import pytest

from fastdss.demo.arms import Arm
from fastdss.demo.evaluate import Result, wilson
from fastdss.demo.expectations import CANNOT_TELL, NOT_SEEN, ONE_SIDED, SEEN, check, difference
from fastdss.demo.page import _cards
from fastdss.demo.run import Run


def a_run(method, setting, leak, useful, correct, total=64, tasks=400):
    counts = {
        "leak": wilson(leak, total),
        "useful_no_leak": wilson(useful, total),
        "benign_correct": wilson(correct, tasks),
    }
    return Run(Arm(method, setting), Result(counts, 0.1, 1.0))


def a_demo(*runs):
    facts = {"guard": {"poisoned_accepted": wilson(2, 48)}, "labelled": {"poisoned_accepted": wilson(16, 48)}}
    return SimpleNamespace(runs=list(runs), facts=facts)


def told(*runs):
    return [expectation.verdict for expectation in check(a_demo(*runs))]


def test_every_claim_can_be_seen():
    runs = [
        a_run("sft", "", 62, 0, 398),
        a_run("rs", "guard", 6, 1, 398),
        a_run("rs", "labelled", 45, 0, 398),
        a_run("dss-k2", "guard", 0, 30, 399),
        a_run("dss-k2", "labelled", 2, 28, 399),
    ]
    assert told(*runs) == [SEEN] * 5
    lines = check(a_demo(*runs))
    assert "16 of 48 poisoned rows pass: 45 of 64 answers leak" in lines[1].measured
    assert "STAR-DSS, k2 (paper) (labelled) 2 of 64" in lines[2].measured


def test_every_claim_can_be_refuted():
    runs = [
        a_run("sft", "", 20, 0, 398),
        a_run("rs", "guard", 50, 30, 398),
        a_run("rs", "labelled", 20, 0, 398),
        a_run("dss-k2", "guard", 15, 4, 360),
    ]
    assert told(*runs) == [NOT_SEEN] * 5


def test_a_quick_run_cannot_tell():
    """``--quick`` printed "seen: plain SFT leaks most, 0 of 5"."""
    few = {"total": 5, "tasks": 4}
    runs = [
        a_run("sft", "", 0, 0, 4, **few),
        a_run("rs", "guard", 0, 0, 4, **few),
        a_run("rs", "labelled", 1, 0, 4, **few),
        a_run("dss-k2", "guard", 0, 1, 4, **few),
    ]
    assert told(*runs) == [CANNOT_TELL] * 5


def test_twenty_four_of_twenty_four_do_not_show_two_per_cent():
    """Nor does one wrong answer of 24 refute it."""
    sft = a_run("sft", "", 20, 0, 24, tasks=24)
    assert told(sft, a_run("dss-k2", "guard", 0, 9, 24, tasks=24))[-1] == CANNOT_TELL
    assert told(sft, a_run("dss-k2", "guard", 0, 9, 22, tasks=24))[-1] == CANNOT_TELL


def test_claims_need_their_arms():
    assert told(a_run("none", "", 0, 0, 0)) == []
    assert told(a_run("sft", "", 3, 0, 9)) == []
    assert told(a_run("dss-k2", "guard", 0, 5, 9)) == [SEEN]
    assert told(a_run("rs", "guard", 0, 5, 9)) == [CANNOT_TELL]


@pytest.mark.parametrize(("one", "other"), [((56, 70), (48, 80)), ((9, 10), (3, 10)), ((10, 10), (0, 20))])
def test_the_difference_is_newcombes(one, other):
    """His examples (a), (b) and (g), method 10, which gives them at 95 % two-sided."""
    two_sided = {
        ((56, 70), (48, 80)): (0.0524, 0.3339),
        ((9, 10), (3, 10)): (0.1705, 0.8090),
        ((10, 10), (0, 20)): (0.6791, 1.0),
    }[one, other]
    low, high = difference(wilson(*one), wilson(*other))
    assert two_sided[0] < low < one[0] / one[1] - other[0] / other[1] <= high <= two_sided[1]

    def score(count, total, z):  # the roots of the quadratic, by bisection of the test itself
        def reaches(p):
            return abs(count / total - p) <= z * math.sqrt(p * (1 - p) / total)

        ends = []
        for edge in (0.0, 1.0):
            inside, outside = count / total, edge
            for _ in range(80):
                middle = (inside + outside) / 2
                inside, outside = (middle, outside) if reaches(middle) else (inside, middle)
            ends.append(inside)
        return ends

    for z, expected in ((1.959963984540054, two_sided), (ONE_SIDED, (low, high))):
        (l1, u1), (l2, u2) = score(*one, z), score(*other, z)
        p1, p2 = one[0] / one[1], other[0] / other[1]
        found = (p1 - p2 - math.hypot(p1 - l1, u2 - p2), p1 - p2 + math.hypot(u1 - p1, p2 - l2))
        assert found == pytest.approx(expected, abs=6e-5)


def test_a_card_has_a_colour_only_where_its_counts_decide():
    """None of 5 leaking was green, as if it were none of 64."""
    runs = [a_run("sft", "", 62, 0, 398), a_run("dss-k2", "guard", 5, 0, 398), a_run("none", "", 0, 0, 0)]
    assert re.findall(r'class="big (\w+)"', _cards(a_demo(*runs))) == ["bad", "plain", "good"]
    few = a_run("none", "", 0, 0, 0, total=5, tasks=4)
    assert re.findall(r'class="big (\w+)"', _cards(a_demo(few))) == ["plain"]
