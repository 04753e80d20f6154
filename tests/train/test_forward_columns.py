"""The forward KL of a LoRA policy from columns computed once: the plain formula with both models' full logits."""

import pytest
import torch

from fastdss import DSSCollator, UserError, add_reference_logprobs, pack, reference_columns
from fastdss.train.enable import bare_model, enable_dss
from fastdss.train.example import COLUMNS
from tests.support.tiny_models import assert_same, gradients, own_logits, plain_loss, tiny_batch, tiny_model
from tests.support.trainers import InOrder, arguments, rows

peft = pytest.importorskip("peft", reason="needs the [train] extra")
datasets = pytest.importorskip("datasets", reason="needs the [train] extra")

DATA = rows(8, columns=("input_ids", "labels", "token_weights"))
FAMILIES = ["Llama", "Granite", "Qwen3", "Cohere2", "Phi"]  # scales, a tied head, a head with a bias


def adapted(family="Llama", dtype=torch.float64, fresh=False, **options):
    layers = {"target_modules": ["q_proj", "v_proj"]} | options
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=fresh, **layers)
    return peft.get_peft_model(tiny_model(family), config).to(dtype)


def referenced(model, data=DATA, **options):
    with model.disable_adapter():
        return [row | more for row, more in zip(data, reference_columns(model, data, forward_kl=True, **options),
                                                strict=True)]  # fmt: skip


def plain(model, batch, **options):
    """With the reference's logits, whose model is the policy without its adapters, row by row where rows are packed."""
    with torch.no_grad(), model.disable_adapter():
        ref_logits = own_logits(model, batch)
    return plain_loss(own_logits(model, batch), batch, kl="forward", ref_logits=ref_logits, **options)


@pytest.fixture
def exact(monkeypatch):
    """Slopes stored unrounded, so that all but storage is held to 1e-10."""
    monkeypatch.setitem(COLUMNS, "ref_slope", (torch.float64, 0.0))


def test_the_columns_are_the_gradient_of_the_references_cross_entropy(exact):
    model, row = tiny_model("Granite"), DATA[1]
    (found,) = reference_columns(model, [row], forward_kl=True)
    hidden = model.model(torch.tensor([row["input_ids"]])).last_hidden_state[0].detach().requires_grad_()
    log_q = model.lm_head(hidden).div(model.config.logits_scaling).log_softmax(-1)
    for t, label in enumerate(row["labels"]):
        if label == -100 or t == 0:
            assert found["ref_offset"][t] == 0
            assert (found["ref_slope"][t] == b"") == (label == -100)
            continue
        slope = torch.autograd.grad(-log_q[t - 1, label], hidden, retain_graph=True)[0][t - 1]
        stored = torch.frombuffer(bytearray(found["ref_slope"][t]), dtype=torch.float64)
        assert torch.allclose(stored, slope, rtol=1e-10, atol=1e-12)
        offset = float(slope @ hidden[t - 1] + log_q[t - 1, label])
        assert float(found["ref_offset"][t]) == pytest.approx(offset, abs=1e-5)
        assert float(found["ref_logprobs"][t]) == pytest.approx(float(log_q[t - 1, label]), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows(exact, family):
    model = adapted(family)
    batch = DSSCollator(0)(referenced(model))
    assert batch["ref_slope"].shape == (8, 9, 32)
    expected = plain(model, batch)
    truth = gradients(model, expected)
    output = enable_dss(model, kl="forward")(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert_same(gradients(model, output.loss), truth)


@pytest.mark.parametrize("packed_first", [True, False])
def test_packed_rows(exact, packed_first):
    model = adapted()
    data = list(pack(DATA, 20)) if packed_first else DATA
    data = referenced(model, data, batch_tokens=30, part_rows=3)
    data = data if packed_first else list(pack(data, 20))
    batch = DSSCollator(0, padding_free=True)(data)
    assert batch["input_ids"].shape[0] == 1
    padded = DSSCollator(0)(DATA)
    expected = plain(model, padded)
    truth = gradients(model, expected)
    output = enable_dss(model, kl="forward")(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert_same(gradients(model, output.loss), truth)


def test_micro_batches_of_a_step(exact):
    model = adapted()
    data = referenced(model)
    whole = DSSCollator(0)(data)
    items = (whole["labels"][:, 1:] != -100).sum()
    truth = gradients(model, plain(model, whole, num_items_in_batch=items))
    enable_dss(model, kl="forward")
    model.zero_grad()
    for start in range(0, 8, 3):
        model(**DSSCollator(0)(data[start : start + 3]), num_items_in_batch=items).loss.backward()
    assert_same({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, truth)


def test_storage_in_16_bit_errs_by_its_rounding_alone():
    """Half a unit in the last place of fp16 is 2**-12 of a number on average; the loss is 0 off at the start."""
    model = adapted()
    batch = DSSCollator(0)(referenced(model))
    truth = gradients(model, plain(model, batch))
    found = gradients(model, enable_dss(model, kl="forward")(**batch).loss)
    assert_same(found, truth, 2e-3)
    fresh = adapted(fresh=True)
    output = enable_dss(fresh, kl="forward")(**DSSCollator(0)(referenced(fresh)))
    assert abs(output.kl.item()) < 1e-6


def test_label_forms_take_the_log_probabilities_beside_them():
    model = adapted()
    batch = DSSCollator(0)(referenced(model))
    with_slopes = enable_dss(model, kl="k2")(**batch).loss
    without = {name: value for name, value in batch.items() if not name.startswith("ref_s") and name != "ref_offset"}
    assert model(**without).loss.item() == with_slopes.item() == pytest.approx(
        plain_loss(own_logits(model, batch), batch).item(), abs=1e-6
    )  # fmt: skip


def test_a_table_keeps_them_through_cutting_and_packing(exact, tmp_path):
    from fastdss.train.prepare import pack_dataset, truncate_dataset

    model = adapted()
    with model.disable_adapter():
        table = add_reference_logprobs(
            datasets.Dataset.from_list(DATA), model, forward_kl=True, cache_dir=tmp_path, part_rows=3
        )
    for row, expected in zip(table, referenced(model, part_rows=3), strict=True):
        assert row["ref_slope"] == expected["ref_slope"]
        assert row["ref_offset"] == expected["ref_offset"].tolist()
    cut = truncate_dataset(table, 6)
    assert [row["ref_slope"] for row in cut] == [row["ref_slope"][:6] for row in table]
    enable_dss(model, kl="forward")
    batches = [DSSCollator(0)(list(cut)), DSSCollator(0, padding_free=True)(list(pack_dataset(cut, 20)))]
    losses = [model(**batch).loss.item() for batch in batches]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
    assert losses[0] == pytest.approx(plain(model, batches[0]).item(), abs=1e-6)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with model.disable_adapter():
        again = add_reference_logprobs(table, model, forward_kl=True, cache_dir=tmp_path, part_rows=3)
    assert not calls
    assert list(again) == list(table)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_takes_the_steps_of_a_live_reference(tmp_path, accumulation):
    stored, live = adapted(dtype=torch.float32, fresh=True), adapted(dtype=torch.float32, fresh=True)
    options = {"gradient_accumulation_steps": accumulation, "max_steps": 4, "learning_rate": 5.0}
    with stored.disable_adapter():
        table = add_reference_logprobs(datasets.Dataset.from_list(DATA), stored, forward_kl=True)
    logs = []
    for model, data, reference in ((stored, table, None), (live, datasets.Dataset.from_list(DATA), "adapter")):
        trainer = InOrder(
            model=model, args=arguments(tmp_path, **options), train_dataset=data, kl="forward", ref_model=reference
        )
        trainer.train()
        logs.append([entry["kl"] for entry in trainer.state.log_history if "kl" in entry])
    assert logs[0] == pytest.approx(logs[1], abs=2e-4)
    assert logs[0][-1] > 1e-3, "nothing was trained"
    start = adapted(dtype=torch.float32, fresh=True).parameters()
    for (name, ours), theirs, before in zip(stored.named_parameters(), live.parameters(), start, strict=True):
        assert (ours - theirs).norm() <= 1e-2 * (theirs - before).norm(), name


def test_a_live_reference_is_not_asked(tmp_path):
    model = adapted(dtype=torch.float32)
    reference = tiny_model(dtype=torch.float32)
    data = referenced(model)
    trainer = InOrder(model=model, args=arguments(tmp_path), train_dataset=data, kl="forward", ref_model=reference)
    calls = []
    reference.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer.train()
    assert not calls


def test_a_batch_without_labels(exact):
    model = enable_dss(adapted(), kl="forward")
    row = {"input_ids": [3, 4], "labels": [-100, -100], "token_weights": [0.5, 0.5], "ref_logprobs": [0.0, 0.0],
           "ref_offset": [0.0, 0.0], "ref_slope": [b"", b""]}  # fmt: skip
    assert model(**DSSCollator(0)([row])).loss.item() == 0
    both = DSSCollator(0)([row, referenced(model)[0]])
    assert both["ref_slope"].shape[-1] == 32
    assert model(**both).loss.item() > 0


def test_log_probabilities_alone_do_not_serve_the_forward_kl(tmp_path):
    model = adapted(dtype=torch.float32)
    data = [row | {"ref_logprobs": [0.0] * len(row["labels"])} for row in DATA]
    with pytest.raises(UserError, match="needs ref_model='adapter'"):
        InOrder(model=model, args=arguments(tmp_path), train_dataset=data, kl="forward")
    trainer = InOrder(
        model=model,
        args=arguments(tmp_path),
        train_dataset=data,
        kl="forward",
        ref_model=tiny_model(dtype=torch.float32),
    )
    trainer.train()
    assert trainer.state.log_history[0]["kl"] > 1e-3


def test_both_kinds_of_answers_in_one_folder(tmp_path):
    model = enable_dss(tiny_model())
    plain_values = reference_columns(model, DATA, cache_dir=tmp_path)
    whole = reference_columns(model, DATA, cache_dir=tmp_path, forward_kl=True)
    assert [set(row) for row in (plain_values[0], whole[0])] == [
        {"ref_logprobs"}, {"ref_logprobs", "ref_offset", "ref_slope"}
    ]  # fmt: skip


HEADS = {
    "is trained": {"modules_to_save": ["lm_head"]},
    "has an adapter": {"target_modules": ["q_proj", "lm_head"]},
}


@pytest.mark.parametrize("why", HEADS)
def test_another_head_than_the_references_is_refused(tmp_path, why):
    model = adapted(dtype=torch.float32, **HEADS[why])
    if why == "has an adapter":
        for parameter in bare_model(model).lm_head.parameters():
            parameter.requires_grad_(False)
    data = referenced(adapted(dtype=torch.float32))
    with pytest.raises(UserError, match=f"expected a frozen output head without adapters, got one that {why}"):
        enable_dss(model, kl="forward")(**DSSCollator(0)(data))
    with pytest.raises(UserError, match=f"frozen output head .* got one that {why}.*ref_model="):
        InOrder(model=model, args=arguments(tmp_path), train_dataset=data, kl="forward")


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"softcap=3\.0: .* linear in the hidden states"):
        reference_columns(tiny_model("Gemma2"), DATA, forward_kl=True)
    with pytest.raises(UserError, match=r"needs ref_model='adapter' or a model, or the columns of .*forward_kl=True"):
        InOrder(model=adapted(), args=arguments(tmp_path), train_dataset=DATA, kl="forward")
    row = referenced(adapted())[0]
    with pytest.raises(UserError, match=r"example 0: ref_slope: expected vectors of one width, got \[3, 64\] bytes"):
        DSSCollator(0)([row | {"ref_slope": [b"123", *row["ref_slope"][1:]]}])
    with pytest.raises(
        UserError, match=r"ref_slope: expected vectors of one width in all examples, got \[\[5\], \[32\]\]"
    ):
        DSSCollator(0)([row, row | {"ref_slope": torch.zeros(len(row["labels"]), 5)}])
    with pytest.raises(UserError, match=r"example 0: ref_slope: expected \[T, D\] numbers, got \[3\]"):
        DSSCollator(0)([row | {"ref_slope": [0.0, 1.0, 2.0]}])
    with pytest.raises(UserError, match="ref_slope, ref_offset given without token_weights"):
        enable_dss(tiny_model())(input_ids=tiny_batch()["input_ids"], ref_slope=torch.ones(1), ref_offset=torch.ones(1))
