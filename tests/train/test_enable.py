"""A model with DSS on gives the loss and gradients of the plain formula on full logits, and else behaves as before."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from fastdss.loss.functional import live_rows
from fastdss.train.enable import DSSOutput, disable_dss, dss_config, enable_dss
from tests.support.tiny_models import (
    FAMILIES,
    VOCAB,
    assert_same,
    gradients,
    own_logits,
    plain_loss,
    tiny_batch,
    tiny_model,
)


def aux_loss(model, batch):
    """The MoE auxiliary loss, from the model itself: what it adds to its own loss."""
    if not getattr(model.config, "output_router_logits", False):
        return 0.0
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model.router_aux_loss_coef * model(**inputs, output_router_logits=True).aux_loss


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_plain_formula(family):
    model, batch = tiny_model(family), tiny_batch()
    expected = plain_loss(own_logits(model, batch), batch) + aux_loss(model, batch)
    truth = gradients(model, expected)
    output = enable_dss(model)(**batch)
    assert isinstance(output, DSSOutput)
    assert output.logits is None
    tolerance = 1e-6 if family == "Mixtral" else 1e-10  # transformers' router computes in single precision
    assert output.loss.item() == pytest.approx(expected.item(), abs=tolerance)
    assert_same(gradients(model, output.loss), truth, tolerance)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
@pytest.mark.parametrize("kl", ["k1", "k3", "reverse", "forward"])
def test_every_form_of_kl(family, kl):
    model, reference, batch = tiny_model(family), tiny_model(family, seed=5), tiny_batch()
    with torch.no_grad():
        ref_logits = own_logits(reference, batch)
    expected = plain_loss(own_logits(model, batch), batch, kl=kl, kl_scale=0.7, ref_logits=ref_logits)
    truth = gradients(model, expected)
    enable_dss(model, kl=kl, kl_scale=0.7)
    if kl in ("reverse", "forward"):
        del batch["ref_logprobs"]
        with torch.no_grad():
            hidden = enable_dss(reference)(**batch, dss_ask="hidden").hidden
        batch |= {"ref_hidden": hidden, "ref_lm_head": reference.lm_head.weight}
    output = model(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-10)
    assert output.loss.item() == pytest.approx((output.ce + output.kl).item(), abs=1e-12)
    assert_same(gradients(model, output.loss), truth)


def test_weights_of_one_are_the_models_own_loss():
    for family in ("Llama", "Mixtral"):
        model, batch = tiny_model(family), tiny_batch()
        own = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
        batch["token_weights"] = torch.ones_like(batch["token_weights"])
        # transformers computes its own in single precision
        assert enable_dss(model)(**batch).loss.item() == pytest.approx(own.item(), rel=1e-6), family


def test_logprobs_are_aligned_with_labels():
    model, batch = tiny_model(), tiny_batch()
    log_p = own_logits(model, batch).log_softmax(-1)
    output = enable_dss(model)(**batch)
    asked = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"],
                  dss_ask="logprobs")  # fmt: skip
    for row, position in (batch["labels"][:, 1:] != -100).nonzero().tolist():
        expected = log_p[row, position, batch["labels"][row, position + 1]].item()
        assert output.logprobs[row, position + 1].item() == pytest.approx(expected, abs=1e-12)
        assert asked.logprobs[row, position + 1].item() == pytest.approx(expected, abs=1e-12)
    assert (output.logprobs[batch["labels"] == -100] == 0).all()
    assert asked.loss is None


def test_rows_known_on_the_host_change_nothing():
    model, batch = enable_dss(tiny_model()), tiny_batch()
    expected = model(**batch)
    live = live_rows(batch["labels"], batch["token_weights"], kl_scale=0.5, shift=True)
    for given in ({"rows": live}, {"rows": live.index, "kl_rows": live.kl_rows}, {"rows": live.index}):
        output = model(**batch, **given)
        assert output.loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)
        assert_same(gradients(model, output.loss), gradients(model, model(**batch).loss), 1e-12)


def test_grad_tol_reaches_the_loss():
    model, batch = enable_dss(tiny_model()), tiny_batch()
    exact = model(**batch).loss
    filtered = enable_dss(model, grad_tol=0.5)(**batch).loss
    assert filtered.item() == exact.item()
    ours, theirs = gradients(model, filtered), gradients(model, exact)
    assert any((a - b).norm() > 1e-3 * b.norm() for a, b in zip(ours.values(), theirs.values(), strict=True))


def test_dynamic_fine_tuning_weighs_each_token_by_its_probability():
    model, batch = tiny_model(), tiny_batch()
    plain = enable_dss(model)(**batch)
    counts = batch["labels"][:, 1:] != -100
    p = plain.logprobs.detach().exp()[:, 1:]
    expected = (batch["token_weights"][:, 1:] * p * -p.log())[counts].sum() / counts.sum()
    found = enable_dss(model, dft=True)(**batch)
    assert found.ce.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.kl.item() == pytest.approx(plain.kl.item(), rel=1e-6)
    assert dss_config(model).dft


def test_num_items_is_the_divisor():
    model, batch = enable_dss(tiny_model()), tiny_batch()
    counts = (batch["labels"][:, 1:] != -100).sum()
    mean = model(**batch).loss
    assert model(**batch, num_items_in_batch=counts * 4).loss.item() == pytest.approx(mean.item() / 4, abs=1e-12)


def test_gradient_accumulation_four_times_two_is_one_times_eight():
    model, batch = enable_dss(tiny_model()), tiny_batch(rows=8)
    items = (batch["labels"][:, 1:] != -100).sum()
    whole = gradients(model, model(**batch, num_items_in_batch=items).loss)
    model.zero_grad()
    for start in range(0, 8, 2):
        part = {name: value[start : start + 2] for name, value in batch.items()}
        model(**part, num_items_in_batch=items).loss.backward()
    assert_same({name: p.grad for name, p in model.named_parameters()}, whole)


def test_no_kl_needs_no_reference():
    model, batch = tiny_model(), tiny_batch()
    expected = plain_loss(own_logits(model, batch), batch, kl_scale=0.0).item()
    del batch["ref_logprobs"]
    assert enable_dss(model, kl_scale=0.0)(**batch).loss.item() == pytest.approx(expected, abs=1e-10)


def test_without_weights_the_model_is_what_it_was(tmp_path):
    model, batch = tiny_model(), tiny_batch()
    plain = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    before, generated = model(**plain), model.generate(batch["input_ids"], max_new_tokens=3, do_sample=False)
    assert enable_dss(model) is model
    after = model(**plain)
    assert type(after) is type(before)
    assert torch.equal(after.loss, before.loss)
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(model.generate(batch["input_ids"], max_new_tokens=3, do_sample=False), generated)
    model.save_pretrained(tmp_path)
    assert model.config.architectures == ["LlamaForCausalLM"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert torch.allclose(
        loaded(**plain).logits, before.logits, atol=1e-5
    )  # rotary frequencies were cast, now computed
    assert dss_config(loaded) is None


def test_copies_and_pickles_keep_dss_on():
    model, batch = enable_dss(tiny_model(), kl="k3", kl_scale=0.25), tiny_batch()
    expected = model(**batch).loss
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stored, weights_only=False)):
        assert type(twin) is type(model)
        assert dss_config(twin) == dss_config(model)
        assert torch.equal(twin(**batch).loss, expected)
        twin.lm_head.weight.data.zero_()
        assert torch.equal(model(**batch).loss, expected), "the copy shares the original's weights"


def test_enabling_twice_and_disabling_twice():
    model, batch = tiny_model(), tiny_batch()
    original = type(model)
    enable_dss(model)
    first = model(**batch).loss
    enabled = type(model)
    enable_dss(model, kl_scale=0.25)
    assert type(model) is enabled
    assert model(**batch).loss < first
    for _ in range(2):
        assert disable_dss(model) is model
        assert type(model) is original
        assert dss_config(model) is None
    assert model(**batch).logits is not None  # transformers ignores keywords it does not know


def test_the_signature_names_the_columns():
    model = tiny_model()
    own = list(inspect.signature(model.forward).parameters)
    names = list(inspect.signature(enable_dss(model).forward).parameters)
    assert names[: len(own) - 1] == own[:-1]
    assert {"token_weights", "ref_logprobs", "ref_hidden", "rows"} <= set(names)
    assert names[-1] == own[-1] == "kwargs"


def test_torch_compile_sees_no_graph_break():
    """torch 2.11 does not see a layer's forward replaced: it breaks the graph there, with the same result."""
    model, batch = enable_dss(tiny_model(dtype=torch.float32)), tiny_batch(dtype=torch.float32)
    expected = model(**batch)
    truth = gradients(model, expected.loss)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=torch.__version__ >= "2.12")
    output = compiled(**batch)
    assert output.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    assert_same(gradients(model, output.loss), truth, 1e-5)


def test_gradient_checkpointing():
    model, batch = enable_dss(tiny_model()).train(), tiny_batch()
    truth = gradients(model, model(**batch).loss)
    model.gradient_checkpointing_enable()
    assert_same(gradients(model, model(**batch).loss), truth)


def test_autocast_stays_within_bf16_rounding():
    model, batch = tiny_model(dtype=torch.float32), tiny_batch(rows=8, dtype=torch.float32)
    truth = gradients(model, plain_loss(own_logits(model, batch), batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = plain_loss(own_logits(model, batch), batch)
    eager = gradients(model, plain)
    enable_dss(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    found = gradients(model, loss)
    assert loss.dtype == torch.float32
    for name, gradient in truth.items():
        error, noise = (found[name] - gradient).norm(), (eager[name] - gradient).norm()
        assert error <= 2 * noise, f"{name}: {error:.3g} against autocast's own {noise:.3g}"


def test_fifty_steps_follow_the_plain_formula():
    losses: dict[str, list[float]] = {"plain": [], "fused": []}
    for kind, record in losses.items():
        model = tiny_model("Gemma2")
        if kind == "fused":
            enable_dss(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(50):
            batch = tiny_batch(rows=4, seed=step % 5)
            loss = model(**batch).loss if kind == "fused" else plain_loss(own_logits(model, batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            record.append(loss.item())
    residual = torch.tensor(losses["fused"], dtype=torch.float64) - torch.tensor(losses["plain"], dtype=torch.float64)
    assert losses["plain"][-1] < 0.8 * losses["plain"][0]
    assert residual.abs().max() < 1e-8, residual.abs().max()


def test_models_dispatched_by_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="needs the [train] extra")
    model, batch = tiny_model(), tiny_batch()
    expected = plain_loss(own_logits(model, batch), batch)
    truth = gradients(model, expected)
    accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert "_old_forward" in model.__dict__
    enable_dss(model)
    assert "token_weights" in inspect.signature(model.forward).parameters
    output = model(**batch)
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-10)
    assert_same(gradients(model, output.loss), truth)
    assert model(**batch).logits is None
    assert disable_dss(model)(**batch).logits is not None


class Bent(nn.Module):
    """A head whose logits are no product of the hidden states with a matrix."""

    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self, hidden):
        return 3 * self.own(hidden).tanh()


def test_errors_say_what_was_expected():
    batch = tiny_batch()
    with pytest.raises(ValueError, match=r"kl: expected one of .*got 'k4'"):
        enable_dss(tiny_model(), kl="k4")
    with pytest.raises(ValueError, match=r"kl_scale: expected .*got -1"):
        enable_dss(tiny_model(), kl_scale=-1)
    with pytest.raises(TypeError, match="backbone"):
        enable_dss(nn.Linear(2, 2))
    engine = type("DeepSpeedEngine", (nn.Module,), {})()
    with pytest.raises(TypeError, match=r"got a DeepSpeedEngine: pass engine\.module"):
        enable_dss(engine)
    with pytest.raises(TypeError, match="DataParallel"):
        enable_dss(nn.DataParallel(tiny_model()))
    split = tiny_model()
    split._tp_size = 2  # as transformers' tp_plan="auto" leaves it
    with pytest.raises(TypeError, match="tensor parallelism splits this LlamaForCausalLM over 2 ranks, its head too"):
        enable_dss(split)
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(tiny_model().config)
    with pytest.raises(ValueError, match="meta device"):
        enable_dss(meta)
    assert dss_config(meta) is None
    assert dss_config(enable_dss(meta, check=False)) is not None
    model = enable_dss(tiny_model())
    with pytest.raises(ValueError, match="labels"):
        model(input_ids=batch["input_ids"], token_weights=batch["token_weights"])
    with pytest.raises(ValueError, match="ref_logprobs given without token_weights"):
        model(input_ids=batch["input_ids"], labels=batch["labels"], ref_logprobs=batch["ref_logprobs"])
    with pytest.raises(ValueError, match="ref_logprobs"):
        model(**{name: value for name, value in batch.items() if name != "ref_logprobs"})
    with pytest.raises(ValueError, match="shape of labels"):
        model(**(batch | {"token_weights": batch["token_weights"][:, 1:]}))
    with pytest.raises(ValueError, match="dss_ask"):
        model(**batch, dss_ask="gradient")
    with pytest.raises(TypeError, match="by keyword"):
        model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"], token_weights=batch["token_weights"])
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(**batch, logits_to_keep=1)
    with pytest.raises(ValueError, match="shift_labels: expected none"):
        model(**batch, shift_labels=batch["labels"])
    del batch["ref_logprobs"]
    biased, hidden = enable_dss(tiny_model("Phi")), torch.zeros(3, 9, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match="ref_lm_head comes with ref_bias"):
        biased(**batch, ref_hidden=hidden, ref_lm_head=biased.lm_head.weight)
    with pytest.raises(ValueError, match="ref_lm_head"):
        model(**batch, ref_hidden=torch.zeros(3, 9, 32, dtype=torch.float64))


@pytest.mark.parametrize(
    "change",
    [lambda *given: given[2] * 2, lambda *given: given[2][:2], lambda *given: given[2][0]],
    ids=["doubles", "cuts", "takes one"],
)
def test_a_hook_that_would_change_logits_is_refused(change):
    """It meets none, and must not pass."""
    model = enable_dss(tiny_model())
    with model.lm_head.register_forward_hook(change), pytest.raises(TypeError, match="remove the hook"):
        model(**tiny_batch())


def test_a_hook_that_changes_what_the_head_is_given_counts():
    model = enable_dss(tiny_model())
    batch = tiny_batch()
    with model.lm_head.register_forward_pre_hook(lambda _, given: (given[0] * 2,)):
        expected = plain_loss(own_logits(model, batch), batch)
        assert model(**batch).loss.item() == pytest.approx(expected.item(), rel=1e-9)
    with model.lm_head.register_forward_hook(lambda *_: None):
        assert model(**batch).loss.isfinite()


def test_unknown_heads_are_refused_and_leave_the_model_alone():
    model = tiny_model()
    original = type(model)
    model.set_output_embeddings(Bent(model.lm_head))
    with pytest.raises(TypeError, match="head"):
        enable_dss(model)
    assert type(model) is original
    scaled = tiny_model("Granite")
    scaled.config.get_text_config().logits_scaling = 1.0
    scaled.logits_scaling = 8.0
    own = type(scaled).forward
    patched = tiny_model()
    patched.forward = lambda *args, **kwargs: own(patched, *args, **kwargs)
    with pytest.raises(ValueError, match="already replaced"):
        enable_dss(patched)


@pytest.mark.parametrize("padding", [0.3, 0.0])
def test_the_check_compares_with_the_models_own_logits(padding):
    """A padding token of zeros, as nn.Embedding makes it, has logits of zero at any scale: it alone passed."""
    model = tiny_model()
    model.model.embed_tokens.weight.data[0] *= padding
    original = type(model)

    class Louder(original):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = 3 * output.logits
            return output

    model.__class__ = Louder
    with pytest.raises(ValueError, match=rf"expected \(1, 3, {VOCAB}\) within .* off by"):
        enable_dss(model)
    assert type(model) is Louder
    assert dss_config(model) is None
