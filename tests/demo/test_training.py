"""Training an arm: what the reference hands over, what learns, and what the weights change."""

import pytest
import torch

from fastdss import Guard, reference_logprobs, star_scores
from fastdss.demo.arms import Arm
from fastdss.demo.conversations import training_conversations
from fastdss.demo.policy import load_policy
from fastdss.demo.training import Recipe, encode_rows, star_weights, train

RECIPE = Recipe(steps=2, batch_size=4, layers=1, warmup=1)


@pytest.fixture(scope="module")
def prepared(tiny_policy):
    policy = load_policy(tiny_policy, "cpu", "fp32")
    chats = training_conversations(3, 3, 0)
    batch = {"prompt": [c.prompt for c in chats], "response": [c.response for c in chats]}
    scores = star_scores(Guard.tiny(), batch)
    encoded = scores.token_weights(policy.tokenizer)
    return policy, chats, scores, encoded, encode_rows(policy, chats, encoded)


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_rows_carry_the_references_logprobs_and_hidden_states(prepared):
    policy, _, _, encoded, rows = prepared
    for row, known in zip(rows, reference_logprobs(policy.model, encoded), strict=True):
        torch.testing.assert_close(row.ref_logprobs, known, atol=1e-5, rtol=1e-5)
        logits = policy.model.lm_head(row.ref_hidden).log_softmax(-1)
        labels = torch.tensor(row.labels[1:])
        own = logits[:-1].gather(1, labels.clamp(min=0)[:, None])[:, 0]
        counted = labels >= 0
        torch.testing.assert_close(row.ref_logprobs[1:][counted], own[counted], atol=1e-5, rtol=1e-5)


def test_every_label_knows_its_place_and_part(prepared):
    policy, chats, _, _, rows = prepared
    for chat, row in zip(chats, rows, strict=True):
        ids = [i for i in row.labels if i != -100]
        assert len(ids) == len(row.spans) == len(row.parts)
        assert policy.tokenizer.decode(ids[:-1]) == chat.response
        assert ids[-1] == policy.tokenizer.eos_token_id
        assert "".join(chat.response[a:b] for a, b in row.spans) == chat.response
        seen = list(dict.fromkeys(row.parts))
        assert seen == ([name for name, _, _ in chat.parts] or ["benign"])


def test_only_the_top_layers_and_the_final_norm_learn(prepared):
    policy, _, _, _, rows = prepared
    before = parameters(policy.model)
    model, curves = train(policy, rows, star_weights(Arm("sft"), None, policy, rows), Arm("sft"), RECIPE)
    after = parameters(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in changed)
    assert len(curves.loss) == 2
    assert all(torch.equal(before[name], p) for name, p in policy.model.named_parameters())
    everything, _ = train(
        policy, rows, star_weights(Arm("sft"), None, policy, rows), Arm("sft"), Recipe(steps=1, batch_size=4)
    )
    assert all(not torch.equal(before[name], p) for name, p in everything.named_parameters())


@pytest.mark.parametrize("method", ["dss-k2", "dss-forward"])
def test_dss_with_scores_of_one_is_sft(prepared, method):
    policy, _, _, _, rows = prepared
    ones = [torch.ones(len(row.input_ids)) for row in rows]
    sft, plain = train(policy, rows, ones, Arm("sft"), RECIPE)
    dss, curves = train(policy, rows, ones, Arm(method, "guard"), RECIPE)
    assert plain.loss == pytest.approx(curves.loss, rel=1e-5)
    for name, value in parameters(sft).items():
        torch.testing.assert_close(dict(dss.named_parameters())[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["dss-k2", "dss-k3", "dss-reverse", "dss-forward"])
def test_dss_with_scores_of_zero_stays_at_the_reference(prepared, method):
    policy, _, _, _, rows = prepared
    zeros = [torch.zeros(len(row.input_ids)) for row in rows]
    _, curves = train(policy, rows, zeros, Arm(method, "guard"), RECIPE)
    assert curves.loss == pytest.approx([0.0, 0.0], abs=1e-6)


def test_a_static_filter_never_sees_rejected_rows(prepared):
    policy, _, _, _, rows = prepared
    kept = [torch.full((len(row.input_ids),), float(row.kind == "benign")) for row in rows]
    _, curves = train(policy, rows, kept, Arm("rs", "guard"), RECIPE)
    assert set(curves.values) == {"benign"}
    nothing = [torch.zeros(len(row.input_ids)) for row in rows]
    model, curves = train(policy, rows, nothing, Arm("rs", "guard"), RECIPE)
    assert curves.loss == []
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), policy.model.parameters(), strict=True))
