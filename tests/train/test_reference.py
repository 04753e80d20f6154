"""Reference log-probabilities: those of the full logits, the same from the cache, after a crash and after damage."""

from types import SimpleNamespace

import pytest
import torch

from fastdss import pack
from fastdss.train import reference, reference_cache
from fastdss.train.enable import dss_config, enable_dss
from fastdss.train.reference import add_reference_logprobs, reference_logprobs
from tests.matrix.tiny import tiny_model as tiny_class
from tests.support.tiny_models import own_logits, tiny_batch, tiny_model


def dataset(count=7):
    batch = tiny_batch(rows=count, length=12)
    lengths = batch["attention_mask"].sum(1).tolist()
    return [{name: batch[name][i, :n].tolist() for name in ("input_ids", "labels")} for i, n in enumerate(lengths)]


def expected(model, rows):
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            log_p = own_logits(model, {"input_ids": ids})[0].log_softmax(-1)
        values = torch.zeros(len(labels), dtype=log_p.dtype)
        for t in range(1, len(labels)):
            if labels[t] != -100:
                values[t] = log_p[t - 1, labels[t]]
        yield values.float()


def counting(model):
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_equal_to_full_logits_one_row_at_a_time(batch_tokens):
    model, rows = tiny_model("Granite").train(), dataset()
    found = reference_logprobs(model, rows, batch_tokens=batch_tokens, part_rows=4)
    for got, want in zip(found, expected(model, rows), strict=True):
        assert got.dtype == torch.float32
        assert torch.allclose(got, want, atol=1e-6)
    assert model.training
    assert dss_config(model) is None


def test_packed_rows():
    model, rows = enable_dss(tiny_model(), kl_scale=0.1), dataset()
    packed = list(pack(rows, 30))
    found = torch.cat(reference_logprobs(model, packed))
    order = [rows.index({k: list(v) for k, v in row.items()}) for row in unpack(packed)]
    want = list(expected(model, rows))
    assert torch.allclose(found, torch.cat([want[i] for i in order]), atol=1e-6)
    assert dss_config(model).kl_scale == 0.1


def unpack(packed):
    for row in packed:
        start = 0
        for length in row["seq_lengths"]:
            yield {name: row[name][start : start + length] for name in ("input_ids", "labels")}
            start += length


def test_the_cache_answers_without_the_model(tmp_path):
    model, rows = tiny_model(), dataset()
    first = reference_logprobs(model, rows, cache_dir=tmp_path, part_rows=3)
    assert len(list(tmp_path.iterdir())) == 3
    calls = counting(model)
    again = reference_logprobs(enable_dss(model), rows, cache_dir=tmp_path, part_rows=3)
    assert len(calls) == 5  # enable_dss's own check
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_other_weights_data_or_precision_are_other_answers(tmp_path):
    model, rows = enable_dss(tiny_model(dtype=torch.float32)), dataset()
    reference_logprobs(model, rows, cache_dir=tmp_path, part_rows=3)
    calls = counting(model)
    edited = [dict(row) for row in rows]
    edited[5]["labels"] = [-100, *edited[5]["labels"][1:-1], 7]
    reference_logprobs(model, edited, cache_dir=tmp_path, part_rows=3)
    assert len(calls) == 1, "only the edited part runs again"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reference_logprobs(model, rows, cache_dir=tmp_path, part_rows=3)
    assert len(calls) == 4
    model.lm_head.weight.data[0, 0] += 1
    changed = reference_logprobs(model, rows, cache_dir=tmp_path, part_rows=3)
    assert len(calls) == 7
    assert torch.allclose(torch.cat(changed), torch.cat(list(expected(model, rows))), atol=1e-5)
    calls.clear()
    reference_logprobs(model, rows, cache_dir=tmp_path, part_rows=3, model_id="me/model@1")
    model.lm_head.weight.data[0, 0] += 1
    reference_logprobs(model, rows, cache_dir=tmp_path, part_rows=3, model_id="me/model@1")
    assert len(calls) == 3, "model_id stands in for the weights"
    reference_logprobs(model.bfloat16(), rows, cache_dir=tmp_path, part_rows=3, model_id="me/model@1")
    assert len(calls) == 6, "but not for their precision"


def test_an_adapters_factor_is_part_of_the_hash(tmp_path):
    """It stands in no weight: with another lora_alpha the same file of weights is another reference."""
    peft = pytest.importorskip("peft", reason="needs the [train] extra")
    rows, found = dataset(), []
    for alpha in (4, 8):
        config = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny_model(), config).double()
        found.append(torch.cat(reference_logprobs(model, rows, cache_dir=tmp_path)))
        assert torch.allclose(found[-1], torch.cat(list(expected(model, rows))), atol=1e-6)
    assert not torch.equal(*found)


def test_positions_and_masks_that_the_model_does_not_take_are_part_of_the_hash(tmp_path):
    """Bloom's forward takes no positions, but they tell where a packed row's documents begin."""
    model = tiny_class("BloomForCausalLM")
    row = {"input_ids": [3, 4, 5, 6, 7, 8], "labels": [-100, 4, 5, -100, 7, 8]}
    packed = row | {"position_ids": [0, 1, 2, 0, 1, 2]}
    hidden = row | {"labels": [-100] * 4 + [7, 8], "attention_mask": [0, 0, 1, 1, 1, 1]}
    whole = hidden | {"attention_mask": [1] * 6}
    for rows in ([row], [packed]), ([hidden], [whole]):
        first, second = (reference_logprobs(model, given, cache_dir=tmp_path)[0] for given in rows)
        assert not torch.equal(first, second)
        assert torch.equal(second, reference_logprobs(model, rows[1])[0])


def test_an_interrupted_run_goes_on(tmp_path):
    model, rows = enable_dss(tiny_model()), dataset()
    calls = []

    def stop_at_third(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        reference_logprobs(model, rows, cache_dir=tmp_path, part_rows=3)
    handle.remove()
    calls = counting(model)
    found = reference_logprobs(model, rows, cache_dir=tmp_path, part_rows=3)
    assert len(calls) == 1
    assert torch.allclose(torch.cat(found), torch.cat(list(expected(model, rows))), atol=1e-6)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_parts_are_set_aside(tmp_path, damage):
    model, rows = enable_dss(tiny_model()), dataset()
    first = reference_logprobs(model, rows, cache_dir=tmp_path)
    (part,) = tmp_path.iterdir()
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content[:-20] if damage == "truncated" else content)
    again = reference_logprobs(model, rows, cache_dir=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".damaged", ".safetensors"]


def test_a_full_disk_leaves_no_half_written_part(tmp_path, monkeypatch):
    model, rows = enable_dss(tiny_model()), dataset()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        reference_logprobs(model, rows, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_zero3_split_have_a_hash_of_their_shares():
    """ZeRO-3 leaves empty placeholders: two checkpoints must not share a hash, or one would get the other's answers."""
    model = tiny_model()
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.ds_tensor = number, parameter.detach().clone().flatten()
        parameter.data = torch.empty(0, dtype=parameter.dtype)
    before = reference_cache._weights_digest(model)
    assert reference_cache._weights_digest(model) == before
    model.lm_head.weight.ds_tensor[0] += 1
    assert reference_cache._weights_digest(model) != before
    model.lm_head.weight.ds_tensor.status = SimpleNamespace(name="NOT_AVAILABLE")
    with pytest.raises(ValueError, match=r"lm_head\.weight are swapped out.* model_id="):
        reference_cache._weights_digest(model)


def test_errors():
    model, rows = enable_dss(tiny_model()), dataset()
    with pytest.raises(ValueError, match="batch_tokens"):
        reference_logprobs(model, rows, batch_tokens=0)
    with pytest.raises(ValueError, match="example 0 has no 'labels'"):
        reference_logprobs(model, [{"input_ids": [3, 4]}])
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"row 0: .*not finite"):
        reference_logprobs(model, rows)
    assert reference_logprobs(model, []) == []
    with pytest.raises(TypeError, match=r"expected a datasets\.Dataset, got list: Dataset\.from_list"):
        add_reference_logprobs([{"input_ids": [3, 4], "labels": [3, 4]}], model)
