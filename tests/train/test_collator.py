"""Batches: weights stay with their tokens through padding, flattening, packing and truncation."""

import pytest
import torch

from fastdss import DSSCollator, UserError, pack
from fastdss.train.config import DSSConfig
from fastdss.train.enable import enable_dss
from tests.support.tiny_models import FAMILIES, assert_same, gradients, tiny_batch, tiny_model

COLUMNS = ("input_ids", "labels", "token_weights", "ref_logprobs")


def examples(count=5, seed=1):
    batch = tiny_batch(rows=count, length=9, seed=seed)
    lengths = batch["attention_mask"].sum(1).tolist()
    return [{name: batch[name][row, :length].tolist() for name in COLUMNS} for row, length in enumerate(lengths)]


def double(batch):
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}


def test_padded_batches_keep_every_value_at_its_place():
    rows = examples()
    batch = DSSCollator(pad_token_id=0, pad_to_multiple_of=4)(rows)
    assert batch["input_ids"].shape == (5, 12)
    assert batch["token_weights"].dtype == batch["ref_logprobs"].dtype == torch.float32
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (12 - length)
        for name in COLUMNS:
            kept = batch[name][index, :length]
            assert torch.equal(kept, torch.tensor(row[name]).to(kept.dtype)), (index, name)
        assert (batch["labels"][index, length:] == -100).all()
        assert (batch["input_ids"][index, length:] == 0).all()


def test_the_users_examples_are_not_changed():
    rows = [{name: torch.tensor(value) for name, value in row.items()} for row in examples()]
    for row in rows:
        row["labels"] = row["input_ids"].clone()
    for padding_free in (False, True):
        DSSCollator(pad_token_id=0, padding_free=padding_free)(rows)
        assert all(torch.equal(row["labels"], row["input_ids"]) for row in rows)


def test_rows_are_where_the_loss_has_work():
    rows = [
        {"input_ids": [3, 4, 5, 6], "labels": [-100, 4, 5, 6], "token_weights": [0.0, 1.0, 0.0, 0.5]},
        {"input_ids": [3, 4], "labels": [3, 4], "token_weights": [1.0, 0.0]},
    ]
    batch = DSSCollator(pad_token_id=0)(rows)
    assert (batch["rows"].tolist(), batch["kl_rows"]) == ([1, 2, 4, 0], 3)  # those with a KL weight first
    batch = DSSCollator(pad_token_id=0, kl_scale=0.0)(rows)
    assert (sorted(batch["rows"].tolist()), batch["kl_rows"]) == ([0, 2], 0)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "Mixtral"])
def test_without_padding_loss_and_gradients_are_the_same(family):
    model = enable_dss(tiny_model(family))
    padded = double(DSSCollator(pad_token_id=0)(examples()))
    flat = double(DSSCollator(pad_token_id=0, padding_free=True, pad_to_multiple_of=16)(examples()))
    assert flat["input_ids"].shape == (1, 48)
    assert flat["cu_seq_lens_q"].tolist() == [0, 9, 16, 21, 30, 37, 48]
    assert flat["max_length_k"] == 11
    expected = model(**padded)
    truth = gradients(model, expected.loss)
    kernels_only = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    output = model(**{name: value for name, value in flat.items() if name not in kernels_only})
    assert output.loss.item() == pytest.approx(expected.loss.item(), abs=1e-7)
    assert_same(gradients(model, output.loss), truth, 1e-6)  # norms and softmax in transformers are single precision
    assert model(**flat).loss.item() == pytest.approx(expected.loss.item(), abs=1e-7)


def test_packed_rows_are_flattened_documents():
    rows = examples(7)
    packed = list(pack(rows, 18))
    assert sum(len(row["input_ids"]) for row in packed) == sum(len(row["input_ids"]) for row in rows)
    assert all(len(row["input_ids"]) == sum(row["seq_lengths"]) <= 18 for row in packed)
    found = set()
    for row in packed:
        start = 0
        for length in row["seq_lengths"]:
            document = {name: tuple(row[name][start : start + length]) for name in COLUMNS}
            found.add(tuple(document[name] for name in COLUMNS))
            start += length
    assert found == {tuple(tuple(row[name]) for name in COLUMNS) for row in rows}
    model = enable_dss(tiny_model())
    expected = model(**double(DSSCollator(pad_token_id=0)(rows))).loss.item()
    output = model(**double(DSSCollator(pad_token_id=0, padding_free=True)(packed)))
    assert output.loss.item() == pytest.approx(expected, abs=1e-10)


def test_packing_fills_rows():
    rows = [{"input_ids": [1] * length, "labels": [1] * length} for length in (5, 3, 8, 2, 4, 2, 6, 2)]
    packed = list(pack(rows, 8))
    assert sorted(sum(row["seq_lengths"]) for row in packed) == [8, 8, 8, 8]
    with pytest.raises(ValueError, match=r"example 2: expected at most max_length = 7 tokens, got 8"):
        list(pack(rows, 7))


@pytest.mark.parametrize("scale", [float("inf"), float("nan"), -1.0])
def test_a_kl_scale_that_no_loss_takes_is_refused_at_once(scale):
    with pytest.raises(UserError, match="kl_scale: expected a finite number >= 0"):
        DSSCollator(pad_token_id=0, kl_scale=scale)


def test_the_whole_configuration_decides_what_the_loss_needs():
    """Constrained fine-tuning compares with the reference also without a KL term, so that must be one."""
    row = {"input_ids": [3, 4, 5], "labels": [-100, 4, 5], "token_weights": [1.0, 1.0, 0.0]}
    bad = row | {"ref_logprobs": [0.0, float("nan"), 0.0]}
    constrained = DSSConfig(kl_scale=0, csft_beta=0.5)
    with pytest.raises(UserError, match=r"ref_logprobs\[1\]: expected a log-probability"):
        DSSCollator(0, config=constrained)([bad])
    assert DSSCollator(0, config=DSSConfig(kl="k3"))([bad])["kl_rows"] == 1  # the label of weight 0 alone
    assert DSSCollator(0, config=DSSConfig(kl_scale=0))([bad])["rows"].tolist() == [0]
    assert DSSCollator(0, kl_scale=0, config=DSSConfig(kl="k3"))([bad])["rows"].tolist() == [0]
    assert DSSCollator(0, config=DSSConfig(kl="k3"))([row])["rows"].tolist() == [1, 0]
    assert DSSCollator(0, 0.0)([row])["kl_rows"] == 0


def test_a_tokenizer_without_a_padding_token():
    with pytest.raises(ValueError, match="pad_token_id: expected a token's number, got None"):
        DSSCollator(None)


def test_plain_examples_make_plain_batches():
    rows = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5], "note": "kept out"}]
    assert set(DSSCollator(pad_token_id=0)(rows)) == {"input_ids", "labels", "attention_mask"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected at least one"),
        ([{"input_ids": [1, 2]}], "example 0 has no 'labels'"),
        ([{"input_ids": [1, 2], "labels": [1, 2], "token_weights": [1.0]}], "expected 2 token_weights, got 1"),
        ([{"input_ids": [1], "labels": [1], "token_weights": None}], r"example 0 has no token_weights \(null\)"),
        (
            [{"input_ids": [1], "labels": [1], "token_weights": [1.0]}, {"input_ids": [1], "labels": [1]}],
            "example 1 has columns",
        ),
        ([{"input_ids": [1, 2], "labels": [1, 2], "seq_lengths": [1, 2]}], "do not add up to its 2 tokens"),
        ([{"input_ids": [1, 2], "labels": [1, 2], "seq_lengths": [1, 1]}], "need padding_free=True"),
        ([{"input_ids": [], "labels": []}], r"\[0\] do not add up to its 0 tokens, each at least 1"),
        # of these torch said "Could not infer dtype of NoneType", "too many dimensions 'str'", something of expand()
        (
            [{"input_ids": [1, 2], "labels": [1, 2], "token_weights": [1.0, None]}],
            "token_weights: expected one number",
        ),
        (
            [{"input_ids": [1, 2], "labels": [1, 2], "token_weights": ["1", "0"]}],
            "token_weights: expected one number",
        ),
        ([{"input_ids": [1, 2], "labels": [1, 2], "token_weights": [[1.0], [0.5]]}], r"got the shape \[2, 1\]"),
        ([{"input_ids": [1, 2], "labels": [1, 2], "token_weights": 0.5}], r"token_weights: .* got the shape \[\]"),
        (
            [{"input_ids": [1, 2], "labels": [1, -1], "token_weights": [1.0, 0.5]}],
            r"expected a label in \[0, V\) or -100, got -1",
        ),
    ],
)
def test_errors_name_example_and_column(rows, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DSSCollator(pad_token_id=0)(rows)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 4.2])
def test_a_reference_that_is_no_log_probability(value):
    """The trainer logs a NaN loss as 0 and takes the step, after which every weight is NaN; 4.2 is an NLL."""
    row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "token_weights": [1.0, 1.0, 0.5]}
    collate = DSSCollator(pad_token_id=0)
    with pytest.raises(ValueError, match=r"example 1: ref_logprobs\[2\]: .*, finite and not above 0, got"):
        collate([row | {"ref_logprobs": [0.0, 0.0, -1.0]}, row | {"ref_logprobs": [0.0, 0.0, value]}])
    collate([row | {"ref_logprobs": [value, value, -1.0]}])  # no label, and a weight of 1: never read
    DSSCollator(pad_token_id=0, kl_scale=0.0)([row | {"ref_logprobs": [value] * 3}])
