"""The paper's claims are held against the numbers: true and false ones alike."""

from types import SimpleNamespace

from fastdss.demo.arms import Arm
from fastdss.demo.evaluate import Result, wilson
from fastdss.demo.expectations import check
from fastdss.demo.run import Run


def a_run(method, setting, leak, useful, correct):
    counts = {
        "leak": wilson(leak, 20),
        "useful_no_leak": wilson(useful, 20),
        "benign_correct": wilson(correct, 50),
    }
    return Run(Arm(method, setting), Result(counts, 0.1, 1.0))


def a_demo(*runs):
    facts = {"guard": {"poisoned_accepted": wilson(2, 48)}, "labelled": {"poisoned_accepted": wilson(16, 48)}}
    return SimpleNamespace(runs=list(runs), facts=facts)


def held(*runs):
    return [expectation.holds for expectation in check(a_demo(*runs))]


def test_every_claim_can_hold():
    runs = [
        a_run("sft", "", 19, 0, 50),
        a_run("rs", "guard", 3, 1, 50),
        a_run("rs", "labelled", 15, 0, 50),
        a_run("dss-k2", "guard", 0, 15, 49),
        a_run("dss-k2", "labelled", 2, 14, 50),
    ]
    assert held(*runs) == [True] * 5
    told = check(a_demo(*runs))
    assert "16 of 48 poisoned rows pass: 15 of 20 answers leak" in told[1].measured
    assert "STAR-DSS, k2 (paper) (labelled) 2 of 20" in told[2].measured


def test_every_claim_can_fail():
    runs = [
        a_run("sft", "", 10, 0, 50),
        a_run("rs", "guard", 15, 4, 50),
        a_run("rs", "labelled", 11, 0, 50),
        a_run("dss-k2", "guard", 3, 4, 48),
    ]
    assert held(*runs) == [False] * 5


def test_claims_need_their_arms():
    assert held(a_run("none", "", 0, 0, 0)) == []
    assert held(a_run("sft", "", 3, 0, 9)) == []
    assert held(a_run("dss-k2", "guard", 0, 5, 9)) == [True]
