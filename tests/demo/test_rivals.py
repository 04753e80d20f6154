"""DFT and constrained SFT against their formulas, and training on what frozen layers gave before."""

import math

import pytest
import torch

from fastdss import Guard, star_scores
from fastdss.demo.arms import Arm
from fastdss.demo.conversations import training_conversations
from fastdss.demo.policy import load_policy, stack, without_lower_layers
from fastdss.demo.training import Recipe, constrained_strengths, encode_rows, star_weights, train
from fastdss.errors import UserError


def test_the_strength_of_constrained_sft_goes_by_a_labels_place():
    labels = torch.tensor([[-100, -100, 5, 6, 7, 8, 9, 10, -100, 11], [-100, 4, -100, 3, -100, -100, 2, 2, 2, 2]])
    wanted = torch.tensor([[0, 0, 0.5, 2, 2, 2, 2, 0.1, 0, 0.1], [0, 0.5, 0, 2, 0, 0, 2, 2, 2, 0.1]])
    counted = labels != -100
    assert torch.equal(constrained_strengths(labels)[counted], wanted[counted])


@pytest.fixture(scope="module")
def prepared(tiny_policy):
    policy = load_policy(tiny_policy, "cpu", "fp32")
    chats = training_conversations(3, 3, 0)
    scores = star_scores(Guard.tiny(), {name: [getattr(c, name) for c in chats] for name in ("prompt", "response")})
    return policy, chats, scores, scores.token_weights(policy.tokenizer)


@pytest.mark.parametrize("method", ["sft", "dft", "constrained", "dss-k2", "dss-reverse"])
def test_what_frozen_layers_gave_trains_the_same_model(prepared, method):
    policy, chats, scores, encoded = prepared
    arm, recipe, models = Arm(method, "guard"), Recipe(steps=3, batch_size=3, layers=1, warmup=1), []
    for frozen in (0, 1):
        rows = encode_rows(policy, chats, encoded, frozen)
        assert all((row.frozen is None) == (frozen == 0) for row in rows)
        models.append(train(policy, rows, star_weights(arm, scores, policy, rows), arm, recipe))
    (whole, curves), (upper, others) = models
    assert len(stack(upper)) == len(stack(policy.model)) == 2
    assert curves.loss == pytest.approx(others.loss, rel=1e-4)
    assert curves.loss[0] != pytest.approx(curves.loss[-1], rel=1e-4)
    for (name, one), two in zip(whole.named_parameters(), upper.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-3, msg=name)


def test_layers_that_do_not_do_alone_are_refused(prepared, monkeypatch):
    policy, chats, _, encoded = prepared
    blocks = stack(policy.model)
    spoilt = torch.nn.ModuleList(blocks)
    monkeypatch.setattr("fastdss.demo.policy.stack", lambda model: spoilt)  # a copy: the model keeps its layers
    with pytest.raises(UserError, match="frozen: expected the layers of LlamaForCausalLM from 1 on to do alone"):
        encode_rows(policy, chats, encoded, 1)
    assert len(blocks) == 2


def test_lower_layers_come_back_in_their_order(prepared):
    policy = prepared[0]
    before = list(stack(policy.model))
    with without_lower_layers(policy.model, 1):
        assert list(stack(policy.model)) == before[1:]
    assert list(stack(policy.model)) == before


@pytest.mark.parametrize("method", ["dft", "constrained"])
def test_the_first_step_loses_what_the_formula_says_at_the_reference(prepared, method):
    policy, chats, scores, encoded = prepared
    rows, arm = encode_rows(policy, chats, encoded, 1), Arm(method)
    _, curves = train(policy, rows, star_weights(arm, scores, policy, rows), arm, Recipe(1, len(rows), layers=1))
    wanted, labels = 0.0, 0
    for row in rows:
        known = row.ref_logprobs[torch.tensor(row.labels) != -100].double()
        labels += len(known)
        places = torch.tensor([0.5, *[2.0] * 4, *[0.1] * (len(known) - 5)], dtype=torch.float64)
        wanted += (-known.exp() * known if method == "dft" else 2 / places * math.log(2)).sum().item()
    assert curves.loss == pytest.approx([wanted / labels], rel=1e-4)
