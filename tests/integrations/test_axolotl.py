"""The axolotl plugin through the calls that axolotl 0.19 makes, in their order, with stand-ins for its classes.

axolotl pins another transformers, so both are not installed here; where it is, its own classes are used.
"""

import json
import sys
import types
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("peft", reason="needs the [train] extra")
pytest.importorskip("pydantic", reason="axolotl brings it")
from transformers import Trainer

from fastdss import DSSCollator, UserError, prepare_dss_dataset
from tests.support.tiny_models import own_logits, plain_loss, scored_rows, tiny_model, tiny_tokenizer
from tests.support.trainers import arguments


class BasePlugin:
    def __init__(self):
        pass


class AxolotlTrainer(Trainer):
    """As axolotl's: takes two collators more, and says that the class counts no items itself."""

    def __init__(self, *args, bench_data_collator=None, eval_data_collator=None, dataset_tags=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


@dataclass
class TrainDatasetMeta:
    train_dataset: Any
    eval_dataset: Any = None
    total_num_steps: int | None = None


@pytest.fixture
def plugin(monkeypatch):
    modules = {
        "axolotl.core.trainers.base": {"AxolotlTrainer": AxolotlTrainer},
        "axolotl.integrations.base": {"BasePlugin": BasePlugin},
        "axolotl.common.datasets": {"TrainDatasetMeta": TrainDatasetMeta},
        "axolotl.loaders": {"load_tokenizer": lambda cfg: tiny_tokenizer()},
        "axolotl.utils.trainer": {"calculate_total_num_steps": lambda cfg, data: len(data)},
    }
    for name, members in modules.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            module = types.ModuleType(".".join(parts[:depth]))
            module.__path__ = []
            monkeypatch.setitem(sys.modules, module.__name__, sys.modules.get(module.__name__, module))
        for member, value in members.items():
            monkeypatch.setattr(sys.modules[name], member, value, raising=False)
    monkeypatch.delitem(sys.modules, "fastdss.integrations.axolotl", raising=False)
    from fastdss.integrations import axolotl

    yield axolotl
    sys.modules.pop("fastdss.integrations.axolotl", None)


def config_of(plugin, path, **options):
    keys = plugin.DSSArgs(dss_data=str(path), **options).model_dump()
    return SimpleNamespace(**keys, sequence_len=128, sample_packing=None, max_steps=None)


@pytest.mark.parametrize("packing", [False, True])
def test_the_plugins_step_is_the_plain_formulas(plugin, tmp_path, packing):
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in scored_rows()))
    cfg = config_of(plugin, path, dss_kl_scale=0.5, dss_packing=packing)
    hooks = plugin.DSSPlugin()
    assert hooks.get_input_args() == "fastdss.integrations.axolotl.DSSArgs"
    meta = hooks.load_datasets(cfg)
    assert meta.total_num_steps == len(meta.train_dataset)
    model = tiny_model(vocab_size=320, dtype=torch.float32)
    hooks.post_model_load(cfg, model)
    collator, options = hooks.get_collator_cls_and_kwargs(cfg)
    made = collator(tiny_tokenizer(), padding=True, return_tensors="pt", **options)
    sizes = {"per_device_train_batch_size": 6} if packing else {"per_device_train_batch_size": 3}
    sizes["gradient_accumulation_steps"] = 1 if packing else 2
    trainer = hooks.get_trainer_cls(cfg)(
        model=model,
        train_dataset=meta.train_dataset,
        eval_dataset=None,
        args=arguments(tmp_path, max_steps=1, **sizes),
        data_collator=made,
        eval_data_collator=made,
        processing_class=tiny_tokenizer(),
    )
    hooks.post_trainer_create(cfg, trainer)
    expected = plain_loss(own_logits(tiny_model(vocab_size=320), batch := rows_of(path)), batch, kl_scale=0.0)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["ce"] == pytest.approx(expected.item(), abs=1e-4)
    assert logged["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the model as it was loaded


def rows_of(path):
    rows = prepare_dss_dataset([json.loads(line) for line in path.read_text().splitlines()], tiny_tokenizer())
    batch = DSSCollator(0)(list(rows))
    return batch | {"ref_logprobs": torch.zeros_like(batch["token_weights"])}


def test_what_the_plugin_refuses(plugin, tmp_path):
    hooks = plugin.DSSPlugin()
    with pytest.raises(UserError, match="dss_data: expected a file of scored conversations"):
        hooks.load_datasets(config_of(plugin, ""))
    cfg = config_of(plugin, tmp_path / "scored.jsonl")
    cfg.sample_packing = True
    with pytest.raises(UserError, match="sample_packing would separate tokens from their weights"):
        hooks.load_datasets(cfg)
