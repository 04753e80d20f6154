"""Private names of TRL that fastdss uses, each asked for what it must do."""

import inspect

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from fastdss.upstream.trl import OpenSFTTrainer, Preparation, made_from
from tests.support.tiny_models import SENTENCES, tiny_model, tiny_tokenizer

from .canary import gone

OPTIONS = {"report_to": "none", "use_cpu": True, "max_steps": 1, "bf16": False, "disable_tqdm": True}


class Seen(OpenSFTTrainer):
    def prepared(self, dataset, how):
        self.prepared_names = [*getattr(self, "prepared_names", []), how.name]
        return super().prepared(dataset, how)


def made(folder, family="Llama", **options):
    model = tiny_model(family, dtype=torch.float32, vocab_size=320)
    data = Dataset.from_list([{"text": text} for text in SENTENCES])
    return Seen(
        model,
        args=SFTConfig(output_dir=str(folder), save_strategy="no", **(OPTIONS | options)),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tiny_tokenizer(),
    )


def test_data_sets_pass_prepared(tmp_path):
    running = made(tmp_path)
    assert running.prepared_names == ["train", "eval"], gone("trl", "SFTTrainer._prepare_dataset", "gets each data set")
    parameters = list(inspect.signature(SFTTrainer._prepare_dataset).parameters)
    expected = ["self", "dataset", *Preparation._fields[:-1], "dataset_name"]
    assert parameters == expected, gone("trl", "SFTTrainer._prepare_dataset", f"takes {expected}")


def test_the_tokenizer_has_the_padding_that_was_chosen(tmp_path):
    running = made(tmp_path, pad_token="<|im_start|>")
    assert running.text_tokenizer.pad_token == "<|im_start|>", gone("trl", "SFTTrainer._tokenizer", "is the tokenizer")


def test_metrics_and_tokens_are_counted(tmp_path):
    running = made(tmp_path, logging_steps=10)
    inputs = next(iter(running.get_train_dataloader()))
    running.compute_loss(running.model.train(), inputs)
    found = running.metrics_of("train")
    assert {"entropy", "mean_token_accuracy", "num_tokens"} <= set(found), gone(
        "trl", "SFTTrainer._metrics", f"holds lists by name, got {sorted(found)}"
    )
    assert all(isinstance(values, list) for values in found.values())
    before = running.tokens_seen
    assert found["num_tokens"] == [before], gone("trl", "SFTTrainer._total_train_tokens", "is what num_tokens logs")
    running.count_tokens(torch.tensor(5))
    assert running.tokens_seen == before + 5
    assert running.metrics_of("train")["num_tokens"] == [before + 5]


@pytest.mark.parametrize(("family", "expected"), [("Llama", None), ("Mixtral", 0.25)])
def test_the_coefficient_of_the_experts_loss(tmp_path, family, expected):
    asked = {"router_aux_loss_coef": 0.25} if expected else {}
    running = made(tmp_path, family, **asked)
    assert running.router_coefficient == expected, gone("trl", "SFTTrainer.router_aux_loss_coef", "is what it adds")


def test_other_attributes_that_the_trainer_reads(tmp_path):
    running = made(tmp_path, padding_free=False)
    assert running.padding_free is False
    assert running.chat_template is None or isinstance(running.chat_template, str), gone(
        "trl", "SFTTrainer.chat_template", "is the template that training needs, or None"
    )


def test_a_model_is_made_of_a_name_as_trl_makes_it(tmp_path):
    tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    found = made_from(str(tmp_path / "model"), None, None)
    assert (type(found).__name__, found.dtype) == ("LlamaForCausalLM", torch.float32), gone(
        "trl", "create_model_from_path", "loads in float32"
    )
    half = SFTConfig(str(tmp_path), model_init_kwargs={"dtype": "bfloat16"}, use_cpu=True, bf16=False)
    assert made_from(str(tmp_path / "model"), half, None).dtype == torch.bfloat16
