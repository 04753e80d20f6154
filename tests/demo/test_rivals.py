"""DFT and constrained SFT against their formulas in float64, and training on what frozen layers gave before."""

import math

import pytest
import torch

from fastdss import Guard, star_scores
from fastdss.demo.arms import Arm
from fastdss.demo.conversations import training_conversations
from fastdss.demo.policy import load_policy, stack, without_lower_layers
from fastdss.demo.rivals import constrained_loss, dft_loss
from fastdss.demo.training import Recipe, encode_rows, star_weights, train
from fastdss.errors import UserError


def test_dft_weighs_with_the_labels_own_probability_and_not_its_gradient():
    logits = torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(7)
    logprobs = logits.log_softmax(-1)[torch.arange(7), labels]
    dft_loss(logprobs).sum().backward()
    p = logits.detach().softmax(-1)
    mine = p[torch.arange(7), labels]
    torch.testing.assert_close(logits.grad, mine[:, None] * (p - torch.nn.functional.one_hot(labels, 11)))


def test_constrained_sft_is_its_formula_with_a_strength_by_place():
    labels = torch.tensor([[-100, -100, 5, 6, 7, 8, 9, 10, -100], [-100, 4, -100, 3, -100, -100, -100, -100, -100]])
    generator = torch.Generator().manual_seed(1)
    counted = labels != -100
    logprobs, known = (
        torch.where(counted, -5 * torch.rand(2, 9, dtype=torch.float64, generator=generator), 0.0) for _ in range(2)
    )
    found = constrained_loss(logprobs, known, labels)
    for row in range(2):
        place = 0
        for column in range(9):
            if not counted[row, column]:
                assert found[row, column] == 0
                continue
            place += 1
            beta = 0.5 if place == 1 else 2.0 if place <= 5 else 0.1
            gap = (logprobs - known)[row, column].item()
            wanted = -2 / beta * math.log(1 / (1 + math.exp(-beta * gap)))
            assert found[row, column].item() == pytest.approx(wanted, rel=1e-6)


def test_constrained_sft_begins_as_sft():
    """At the reference the gradient of each label is that of its cross-entropy, -1, whatever its place."""
    labels, known = torch.arange(8)[None], -torch.rand(1, 8, generator=torch.Generator().manual_seed(2))
    logprobs = known.clone().requires_grad_()
    constrained_loss(logprobs, known, labels).sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.full((1, 8), -1.0))


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
