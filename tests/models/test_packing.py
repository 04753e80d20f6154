"""A model proves on two documents that it keeps packed rows apart, or is refused by name; nobody's word is taken."""

import copy

import pytest
import torch

from fastdss import DSSCollator, UserError, enable_dss, pack, reference_logprobs
from fastdss.models.packing import is_packed, packing_of
from fastdss.train.enable import check_packing
from fastdss.train.forward import head_states
from tests.matrix.cells import TOLERANCE, Case, compare, make_rows, through
from tests.matrix.tiny import tiny_model


def packed_batch():
    return DSSCollator(0, padding_free=True, pad_to_multiple_of=16)(list(pack(make_rows(), 64)))


# gpt-oss passes no positions to its masks, OPT makes its positions of the mask: masks ready-made help both.
WAYS = {
    "LlamaForCausalLM": "as given",
    "Gemma3ForCausalLM": "as given",
    "GptOssForCausalLM": "with masks",
    "OPTForCausalLM": "with masks",
}


@pytest.mark.parametrize(("name", "way"), WAYS.items())
def test_packed_rows_are_the_rows_alone(name, way):
    case = Case(name)
    model = case.enabled()
    assert compare(*through(model, packed_batch()), case.right) < TOLERANCE
    assert packing_of(model, lambda **_: pytest.fail("asked again")).way == way


def test_a_model_whose_weights_are_whole_only_within_a_call_is_tried_too():
    """As ZeRO-3 keeps them. Words were counted by the embedding's empty weight, and packing refused."""
    model = tiny_model("LlamaForCausalLM")
    embedding = model.get_input_embeddings()
    whole, empty = embedding.weight.data, embedding.weight.data.new_empty(0)

    def keep(values):
        embedding.weight.data = values

    enable_dss(model)
    embedding.register_forward_pre_hook(lambda *_: keep(whole))
    embedding.register_forward_hook(lambda *_: keep(empty))
    keep(empty)
    assert packing_of(model, lambda **inputs: head_states(model, **inputs)).way == "as given"


@pytest.mark.parametrize("name", ["MambaForCausalLM", "BloomForCausalLM", "MptForCausalLM", "RwkvForCausalLM"])
def test_classes_that_read_across_documents_are_refused_by_name(name):
    case = Case(name)
    model = case.enabled()
    refused = rf"{name} cannot keep the documents of a packed row apart.*padding_free=False"
    with pytest.raises(UserError, match=refused):
        model(**packed_batch())
    with pytest.raises(UserError, match=refused):
        check_packing(model)
    assert case.padded() == "right"
    one = DSSCollator(0, padding_free=True)(make_rows()[:1])  # one document in its row reads across nothing
    assert model(**one).loss.isfinite()


@pytest.mark.parametrize(
    ("name", "settings"),
    [("DeepseekV4ForCausalLM", {}), ("DogeForCausalLM", {"keep_window_size": 20})],
    ids=["blocks begin with the row", "the likeliest of the row's tokens"],
)
def test_what_only_a_long_document_reads_of_the_others_is_noticed(name, settings):
    """A short second document hid it: DeepSeek V4 compresses blocks that are counted from the row's beginning."""
    # With transformers 5.17 Doge's tokens even see later ones, which is refused earlier.
    with pytest.raises(UserError, match=f"{name} (cannot keep the documents of a packed row apart|is no causal LM)"):
        check_packing(enable_dss(tiny_model(name, max_position_embeddings=1024, **settings)))


@pytest.mark.parametrize(("leak", "kept"), [(0.0, True), (1.0, False)])
def test_in_bf16_a_leak_is_told_from_rounding(leak, kept):
    """Experts that get other numbers of tokens round otherwise, whichever document stands in front; a leak needs the
    other document to stand before."""
    table = torch.randn(97, 8, generator=torch.Generator().manual_seed(5))

    def states(input_ids, **_):
        of_all_tokens = torch.Generator().manual_seed(int(input_ids.sum()))
        rounding = 2**-11 * torch.randn(*input_ids.shape, 8, generator=of_all_tokens)
        return (table[input_ids % 97] + rounding + leak * input_ids[:, 1:2, None] / 2**9).bfloat16()

    model = tiny_model("LlamaForCausalLM").bfloat16()
    found = packing_of(model, states)
    assert (found.way is not None) == kept, found


def test_the_reference_of_packed_rows_is_that_of_the_rows():
    model, rows = tiny_model("MambaForCausalLM"), make_rows()
    packed = list(pack(rows, 64))
    one_by_one = reference_logprobs(model, sorted(rows, key=lambda row: -len(row["input_ids"])))
    assert torch.equal(torch.cat(reference_logprobs(model, packed)), torch.cat(one_by_one))


def test_another_attention_proves_itself_anew():
    model = enable_dss(tiny_model("LlamaForCausalLM"))

    def states(**inputs):
        asked.append(inputs)
        return head_states(model, **inputs)

    asked: list = []
    assert packing_of(model, states).way == "as given"
    assert len(asked) == 3
    packing_of(model, states)
    assert len(asked) == 3
    model.set_attn_implementation("eager")
    packing_of(model, states)
    assert len(asked) == 6


def test_the_proof_leaves_no_trace():
    model = enable_dss(tiny_model("LlamaForCausalLM")).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    check_packing(model)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    copy.deepcopy(model)


def test_positions_that_start_anew_are_packed_rows():
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    assert is_packed({"position_ids": positions})
    assert not is_packed({"position_ids": positions, "attention_mask": torch.ones(1, 5)})
    assert not is_packed({"position_ids": torch.arange(5)[None]})
    assert not is_packed({"cu_seq_lens_q": torch.tensor([0, 5])})
    mamba = enable_dss(tiny_model("MambaForCausalLM"))
    batch = packed_batch()
    for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"):
        del batch[name]
    with pytest.raises(UserError, match="MambaForCausalLM cannot keep"):
        mamba(**batch)
