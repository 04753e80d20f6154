"""Rows without padding through transformers' flash-attn path, whose library is a stand-in with its contract."""

from __future__ import annotations

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash

from fastdss import DSSCollator, pack
from fastdss.train.enable import enable_dss
from tests.support.flash import FlashStandIn
from tests.support.tiny_models import assert_same, gradients, tiny_model

from .test_collator import double, examples


@pytest.fixture
def library(monkeypatch) -> FlashStandIn:
    """flash-attn as if it were installed, in the place where transformers keeps what it imported."""
    stand_in = FlashStandIn()
    varlen = stand_in.flash_attn_varlen_func
    monkeypatch.setattr(flash, "_flash_fn", stand_in.flash_attn_func)
    monkeypatch.setattr(flash, "_flash_varlen_fn", varlen)
    monkeypatch.setattr(flash, "_pad_fn", flash._pad_input)
    monkeypatch.setattr(flash, "_unpad_fn", flash._unpad_input)
    monkeypatch.setattr(flash, "_process_flash_kwargs_fn", flash._lazy_define_process_function(varlen))
    monkeypatch.setattr(flash, "_loaded_implementation", "flash_attention_2")
    return stand_in


def on_flash(family: str, **changes):
    model = tiny_model(family, **changes)
    model.config._attn_implementation = "flash_attention_2"
    return enable_dss(model)


@pytest.mark.parametrize("multiple", [None, 16])
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Granite"])
def test_loss_and_gradients_are_those_of_padded_rows(library, family: str, multiple: int | None) -> None:
    """The stand-in refuses wrong types, lengths that are not the longest, and cuts that miss a token."""
    rows = examples()
    padded = enable_dss(tiny_model(family))
    truth = padded(**double(DSSCollator(pad_token_id=0, pad_to_multiple_of=multiple)(rows))).loss
    expected = gradients(padded, truth)
    batch = double(DSSCollator(pad_token_id=0, padding_free=True, pad_to_multiple_of=multiple)(rows))
    model = on_flash(family)
    loss = model(**batch).loss
    assert torch.allclose(loss, truth, rtol=0, atol=1e-7)
    assert_same(gradients(model, loss), expected, 1e-6)
    documents = len(rows) + (batch["input_ids"].shape[1] > sum(len(row["input_ids"]) for row in rows))
    layers = model.config.num_hidden_layers  # the last forward's; before it, the model was probed
    assert library.calls[-layers:] == [(documents, True)] * layers


def test_packed_rows_too(library) -> None:
    rows = examples()
    packed = list(pack(rows, 24))
    assert len(packed) < len(rows)
    truth = enable_dss(tiny_model())(**double(DSSCollator(pad_token_id=0)(rows))).loss
    model = on_flash("Llama")
    loss = model(**double(DSSCollator(pad_token_id=0, padding_free=True)(packed))).loss
    assert torch.allclose(loss, truth, rtol=0, atol=1e-7)
    assert library.calls[-1] == (len(rows), True)


@pytest.mark.parametrize("broken", ["cu_seq_lens_q", "max_length_q"])
def test_the_stand_in_notices(library, broken: str) -> None:
    batch = double(DSSCollator(pad_token_id=0, padding_free=True)(examples()))
    batch[broken] = batch[broken] + 1
    with pytest.raises(AssertionError):
        on_flash("Llama")(**batch)
