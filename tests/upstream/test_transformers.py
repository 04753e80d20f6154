"""Names of transformers that fastdss uses and its documentation does not promise, each asked for what it must do."""

import os
import shutil
import subprocess
import sys

import torch
import transformers
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from fastdss.guards.known import TINY_FOLDER
from fastdss.upstream.transformers import (
    Temperature,
    TrainerSeams,
    attention_of,
    attentions_of,
    commit_of,
    count_shifted_labels,
    divide_by_items,
    divides_by_items,
    ignore_when_loading,
    key_rotation,
    layer_index,
    masks_by_kind,
    micro_batches,
    places_itself,
    query_temperature,
    qwen3_norm,
    remembered_name,
    settings_of,
    tensor_parallel_ranks,
    trackers,
    without_smoother,
)
from tests.matrix.tiny import tiny_model as tiny_class
from tests.support.tiny_models import SIZES, tiny_batch, tiny_model

from .canary import gone


def changed(name: str, means: str) -> str:
    return gone("transformers", name, means)


def attention_layers(model):
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


def test_the_attention_in_use():
    model = tiny_model()
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert attention_of(model.config) == name, changed("config._attn_implementation", "names the one in use")


def test_the_attention_of_each_part():
    model = tiny_class("Mistral3ForConditionalGeneration")
    model.set_attn_implementation({"": "sdpa", "vision_config": "sdpa", "text_config": "eager"})
    named = attentions_of(model.config)
    assert named == {"": "sdpa", "vision_config": "sdpa", "text_config": "eager"}, changed("sub_configs", "names parts")
    assert attentions_of(tiny_model().config) == attention_of(tiny_model().config)


COMMIT = "0123456789" * 4
IDENTITY = """
from fastdss.corpus.guards import GuardSource
from fastdss.guards.known import TINY
from fastdss.upstream.transformers import commit_of
print(commit_of("owner/guard"), commit_of("owner/guard", "v1"))
source = GuardSource("owner/guard", spec=TINY, revision="v1")
print(source.identity().revision, source.revision)
"""


def test_the_commit_of_a_guard_on_the_hub(tmp_path):
    """From the Hub's cache without a network, as huggingface_hub lays it out; a folder has no commit."""
    assert commit_of(str(TINY_FOLDER)) is None
    cached = tmp_path / "hub" / "models--owner--guard"
    shutil.copytree(TINY_FOLDER, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    for name in ("main", "v1"):
        (cached / "refs" / name).write_text(COMMIT)
    settings = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", IDENTITY], env=settings, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [COMMIT] * 4, changed(
        "utils.cached_file", f"gives a path of the cache: {done.stderr}"
    )


def test_the_name_a_config_remembers():
    config = transformers.LlamaConfig(**SIZES)
    config._name_or_path = "owner/guard"
    assert remembered_name(config.to_dict()) == "owner/guard", changed("_name_or_path", "stands in config.json")
    assert remembered_name({}) == ""


def test_settings_do_not_tell_where_they_came_from(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    moved = transformers.AutoConfig.from_pretrained(tmp_path)
    moved._name_or_path = "/elsewhere"
    assert settings_of(loaded) == settings_of(moved), changed("_name_or_path", "is all that a place changes")
    moved.rms_norm_eps = 0.5
    assert settings_of(loaded) != settings_of(moved)


def test_weights_that_are_left_out_without_a_word(tmp_path):
    model = tiny_model(dtype=torch.float32)
    model.register_parameter("category_head", torch.nn.Parameter(torch.zeros(2)))
    model.save_pretrained(tmp_path)

    class Other(transformers.LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            ignore_when_loading(self, [r"^category_head"])
            self.post_init()

    _, plain = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    _, told = Other.from_pretrained(tmp_path, output_loading_info=True)
    assert list(plain["unexpected_keys"]) == ["category_head"]
    left = list(told["unexpected_keys"])
    assert left == [], changed("_keys_to_ignore_on_load_unexpected", f"hides what matches, not {left}")


def test_qwen3s_norm():
    torch.manual_seed(0)
    rows, norm = torch.randn(5, 8), qwen3_norm(8, 1e-6)
    torch.nn.init.normal_(norm.weight)
    expected = rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    assert (norm(rows) - expected).abs().max() < 1e-6, changed("Qwen3RMSNorm", "divides by the root mean square")
    rounded = (
        rows.bfloat16().float() / (rows.bfloat16().float().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    ).bfloat16()
    assert torch.equal(norm.bfloat16()(rows.bfloat16()), norm.weight.bfloat16() * rounded), changed(
        "Qwen3RMSNorm", "rounds before its weight multiplies"
    )


def test_masks_keep_the_documents_of_a_row_apart():
    config = tiny_model().config
    config._attn_implementation = "eager"
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    mask = masks_by_kind(config, torch.empty((1, 5, 0)), positions)
    expected = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]) > 0
    assert torch.equal(mask[0, 0] > -1, expected), changed("create_masks_for_generate", "hides other documents")


def test_trackers_are_built_by_name():
    (tracker,) = trackers(["tensorboard"])
    assert isinstance(tracker, type), changed("get_reporting_integration_callbacks", "gives the classes of callbacks")
    assert issubclass(tracker, transformers.TrainerCallback)
    assert trackers([]) == []


def test_over_how_many_ranks_a_model_is_split():
    model = tiny_model()
    assert tensor_parallel_ranks(model) == 1
    assert hasattr(transformers.PreTrainedModel, "tp_size"), changed("model.tp_size", "counts the ranks of tp_plan")


def test_whether_a_quantiser_placed_the_model():
    assert places_itself(tiny_model()) is False
    source = transformers.modeling_utils.__loader__.get_source("transformers.modeling_utils")
    assert ".hf_quantizer = " in source, changed("model.hf_quantizer", "is set where a quantiser loads")


def test_attention_layers_know_their_place():
    model = tiny_model()
    found = [layer_index(module) for module in attention_layers(model)]
    assert found == [0, 1], changed("layer_idx", f"numbers the layers, got {found}")
    bidirectional = transformers.AutoModel.from_config(
        transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    )
    assert {layer_index(module) for module in attention_layers(bidirectional)} == {None}


def test_models_rotate_keys_by_a_function_of_their_module():
    """Llama pairs the halves of a head, Cohere its neighbours; Gemma 3 has two rotations."""
    keys = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for family in ("Llama", "Cohere"):
        model = tiny_model(family, head_dim=8).model
        pairs = keys.unflatten(-1, (2, 4)).transpose(-1, -2) if family == "Llama" else keys.unflatten(-1, (4, 2))
        angles = -5 * model.config.rope_parameters["rope_theta"] ** (-torch.arange(4, dtype=torch.float64) / 4)
        turned = torch.view_as_real(
            torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)
        )
        expected = (turned.transpose(-1, -2) if family == "Llama" else turned).flatten(-2)
        move = key_rotation(model)
        means = "turns keys by the angles of rotary_emb"
        assert move is not None, changed("apply_rotary_pos_emb", means)
        found = move(keys, torch.full((3,), -5))
        assert torch.allclose(found, expected, rtol=0, atol=1e-6), changed("apply_rotary_pos_emb", means)
    gemma = transformers.Gemma3TextConfig(**SIZES)
    assert key_rotation(transformers.AutoModel.from_config(gemma)) is None


def test_llama4_scales_queries_by_their_place():
    config = transformers.Llama4TextConfig(
        **SIZES, intermediate_size_mlp=48, num_local_experts=2, no_rope_layers=[1, 0], floor_scale=4, attn_scale=0.5
    )
    layers = attention_layers(transformers.AutoModelForCausalLM.from_config(config))
    found = [query_temperature(layer) for layer in layers]
    means = f"gives floor and scale of layers without rotation, got {found}"
    assert found == [None, Temperature(4.0, 0.5)], changed("Llama4TextAttention's attributes", means)
    assert query_temperature(attention_layers(tiny_model())[0]) is None


class Rows(Dataset):
    def __init__(self):
        self.rows = [{k: v[0] for k, v in tiny_batch(1, seed=seed).items() if k != "ref_logprobs"} for seed in range(3)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return dict(self.rows[index])


class Seen(TrainerSeams, Trainer):
    """Records what goes through the seams."""

    seen = ()

    def inputs_on_device(self, inputs):
        self.moved = super().inputs_on_device(inputs)
        return self.moved

    def kept_columns(self):
        return ("token_weights", "labels")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.columns, self.items = set(inputs), num_items_in_batch
        self.seen = [*self.seen, micro_batches(self)]
        inputs.pop("token_weights")
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def trainer(folder, **options):
    args = TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, per_device_train_batch_size=1, max_steps=2,
        gradient_accumulation_steps=2, save_strategy="no", disable_tqdm=True, **options,
    )  # fmt: skip
    return Seen(model=tiny_model(dtype=torch.float32), args=args, train_dataset=Rows())


def test_the_seams_of_trainer_are_passed(tmp_path):
    running = trainer(tmp_path)
    running.train()
    assert running.moved["input_ids"].shape == (1, 9), changed("Trainer._prepare_inputs", "prepares every batch")
    assert "token_weights" in running.columns, changed("Trainer._set_signature_columns_if_needed", "says what is kept")
    assert "attention_mask" in running.columns
    assert running._signature_columns.count("token_weights") == 1
    assert running.seen == [2, 2, 1], changed("Trainer.current_gradient_accumulation_steps", "counts a step's batches")


def test_who_divides_by_the_labels_of_a_step(tmp_path):
    running = trainer(tmp_path)
    assert divides_by_items(running) is True, changed("Trainer.model_accepts_loss_kwargs", "reads the signature")
    running.model_accepts_loss_kwargs = False
    running.train()
    assert running.items is None, changed("Trainer.model_accepts_loss_kwargs", "decides who divides")
    divide_by_items(running)
    running.train()
    assert running.items is not None


def test_whether_a_rows_first_label_is_an_item(tmp_path):
    running = trainer(tmp_path)
    batch = {"labels": torch.tensor([[3, 4, -100, 5], [6, -100, -100, 7]])}

    def items():
        return int(running._get_num_items_in_batch([batch], "cpu"))

    running._loss_shifts_labels = False  # as for a class whose loss is not one that transformers names
    assert items() == 5
    count_shifted_labels(running)
    assert items() == 3, changed("Trainer._loss_shifts_labels", "decides which labels are items")


def test_labels_are_smoothed_by_one_attribute(tmp_path):
    running = trainer(tmp_path, label_smoothing_factor=0.5)
    inputs = {name: value[None] for name, value in Rows()[0].items()}
    smooth, plain = (trainer(tmp_path, label_smoothing_factor=factor) for factor in (0.5, 0.0))
    losses = [loss_of(each, inputs) for each in (smooth, plain)]
    with without_smoother(running):
        found = loss_of(running, inputs)
    assert losses[0] != losses[1]
    assert found == losses[1], changed("Trainer.label_smoother", "is what smooths")
    assert loss_of(running, inputs) == losses[0]


def loss_of(running, inputs):
    names = {"input_ids", "attention_mask", "labels"}
    return Trainer.compute_loss(running, running.model, {k: v for k, v in inputs.items() if k in names}).item()
