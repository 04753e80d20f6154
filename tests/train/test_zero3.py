"""DeepSpeed ZeRO on two ranks over gloo: the gradients and the steps of one process, and errors that say what to do.

DeepSpeed is no dependency: ``DS_BUILD_OPS=0 pip install deepspeed`` builds nothing and is enough for this.
"""

import importlib.util

import pytest
import torch
import torch.distributed as dist

from fastdss import DSSCollator, weighted_ce
from fastdss.train.enable import enable_dss
from fastdss.train.reference import reference_logprobs
from tests.support.ranks import WORLD, on_two_ranks
from tests.support.tiny_models import assert_same, gradients, own_logits, plain_loss, tiny_batch, tiny_model
from tests.train.test_distributed import in_order, weighted_rows

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("needs DeepSpeed", allow_module_level=True)

CONFIG = {
    "train_micro_batch_size_per_gpu": 4,
    "gradient_clipping": 0.0,  # accelerate makes it 1.0 where it is not said
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # the first time DeepSpeed compiles an extension
HEAD_ADAPTER = {"target_modules": ["q_proj", "lm_head"], "lora_alpha": 64, "init_lora_weights": False}
CASES = {  # stage, when DSS is switched on with respect to the engine, model
    "head of its own": (3, "before", {}),
    "enabled afterwards": (3, "after", {}),
    "tied head": (3, "before", {"family": "Qwen3"}),
    "frozen head": (3, "before", {"frozen": True}),
    "LoRA on the head": (3, "after", {"adapter": HEAD_ADAPTER}),
    "ZeRO-2": (2, "before", {}),
    "ZeRO-2, frozen head": (2, "after", {"frozen": True}),
}
ADAPTERS = {  # they begin as nothing, as the reference is; so scaled, they have left it by the second step
    "LoRA": {"target_modules": ["q_proj"], "lora_alpha": 640},
    "LoRA with a saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "lora_alpha": 640},
    "LoRA on the head": {"target_modules": ["q_proj", "lm_head"], "lora_alpha": 128},
}
REFERENCES = [*ADAPTERS, "frozen model"]


def needed(case):
    if "LoRA" in case:
        pytest.importorskip("peft", reason="needs the [train] extra")


def config(stage):
    return CONFIG | {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}


def adapted(model, options):
    import peft

    torch.manual_seed(0)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, **options)
    return peft.get_peft_model(model, lora, autocast_adapter_dtype=False)


def made(family="Llama", frozen=False, adapter=None):
    model = tiny_model(family)
    model.lm_head.requires_grad_(not frozen)
    return model if adapter is None else adapted(model, adapter).double()


def split_gradients(stage, when, options):
    """Gradients of a batch of 8 rows over both ranks."""
    import deepspeed

    model = made(**options)
    if when == "before":
        enable_dss(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config(stage))
    if when == "after":
        enable_dss(model)
    batch, rank = tiny_batch(rows=8), dist.get_rank()
    items = (batch["labels"][:, 1:] != -100).sum()
    mine = {name: value[rank * 4 : rank * 4 + 4] for name, value in batch.items()}
    engine.backward(WORLD * engine(**mine, num_items_in_batch=items).loss)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return {name: deepspeed.utils.safe_get_full_grad(p).double() for name, p in named}


def error_outside_the_head():
    import deepspeed

    model = tiny_model()
    deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), config=config(3))
    with pytest.raises(ValueError, match="lm_head is an ungathered ZeRO-3 shard: wrap the call in") as caught:
        weighted_ce(torch.zeros(1, 8), model.lm_head.weight, torch.zeros(1, dtype=torch.long))
    return str(caught.value)


def load(folder, name="model"):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(f"{folder}/{name}", dtype=torch.float64)


def unreferenced(rows):
    return [{name: value for name, value in row.items() if name != "ref_logprobs"} for row in rows]


def half_whole(rows):
    """Every other batch of two has weights of 1 only, so it may go without."""
    return [row | {"token_weights": [1.0] * 9} if i % 4 > 1 else row for i, row in enumerate(rows)]


def without_whole_weights(rows):
    batch = DSSCollator(0)(rows)
    if (batch["token_weights"] == 1).all():
        batch = {name: value for name, value in batch.items() if name not in ("token_weights", "rows", "kl_rows")}
    return batch


def trained(folder, reference=None, mixed=False, collator=None, **options):
    """Logs of two steps of DSSTrainer; with DeepSpeed, its arguments split the model while transformers loads it."""
    from fastdss.train.trainer import DSSTrainer

    class Referenced(DSSTrainer):  # its reference is loaded after the arguments are made, as users do
        def __init__(self, train_dataset, **kwargs):
            live = "adapter" if reference in ADAPTERS else load(folder, "reference")
            data = unreferenced(half_whole(train_dataset) if mixed else train_dataset)
            super().__init__(train_dataset=data, data_collator=collator, ref_model=live, kl="forward", **kwargs)

    def make():
        model = load(folder)
        return adapted(model, ADAPTERS[reference]) if reference in ADAPTERS else model

    return in_order(Referenced if reference else DSSTrainer, folder, make, **options)[1]


def trained_on_both(folder, reference=None, **data):
    automatic = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "ddp_backend": "gloo"}
    return trained(folder, reference, deepspeed=config(3) | automatic, **data, **options)


def logprobs_before_the_engine(folder):
    from transformers.integrations import HfDeepSpeedConfig

    splitting = HfDeepSpeedConfig(config(3))  # for as long as it lives
    model = load(folder)
    assert not model.lm_head.weight.numel(), splitting
    return reference_logprobs(model, unreferenced(weighted_rows()), batch_tokens=30)


def work(folder):
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    adapters = importlib.util.find_spec("peft") is not None
    results = {case: split_gradients(*CASES[case]) for case in CASES if adapters or "LoRA" not in case}
    results["error"] = error_outside_the_head()
    if importlib.util.find_spec("accelerate"):
        results["trainer"] = trained_on_both(folder)
        live = [reference for reference in REFERENCES if adapters or "LoRA" not in reference]
        results["references"] = {reference: trained_on_both(folder, reference) for reference in live}
        mixed = {"mixed": True, "collator": without_whole_weights}
        results["mixed"] = {reference: trained_on_both(folder, reference, **mixed) for reference in live}
        results["logprobs"] = logprobs_before_the_engine(folder)
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tiny_model().save_pretrained(folder / "model")
    tiny_model(seed=5).save_pretrained(folder / "reference")
    return folder


@pytest.fixture(scope="module")
def results(folder):
    # What DeepSpeed compiles has a folder of its own: in the shared one a killed run leaves a lock that nobody opens.
    environment = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    return on_two_ranks(work, folder, environment=environment, seconds=600)


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_whole_batch(results, case):
    needed(case)
    model, batch = made(**CASES[case][2]), tiny_batch(rows=8)
    truth = gradients(model, plain_loss(own_logits(model, batch), batch))
    for rank in range(WORLD):
        assert_same(results[rank][case], truth, 1e-6)  # ZeRO keeps gradients in fp32


def test_a_shard_outside_the_head_names_the_step(results):
    assert "deepspeed.zero.GatheredParameters([lm_head])" in results[0]["error"]


def same_logs(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_the_trainer_takes_the_steps_of_one_process(results, folder):
    pytest.importorskip("accelerate", reason="needs the [train] extra")
    expected = trained(folder, per_device_train_batch_size=8)
    for rank in range(WORLD):
        same_logs(results[rank]["trainer"], expected)


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_live_reference_is_whole_where_it_is_read(results, folder, reference):
    pytest.importorskip("accelerate", reason="needs the [train] extra")
    needed(reference)
    expected = trained(folder, reference, per_device_train_batch_size=8)
    assert expected[-1]["kl"] > 1e-3
    for rank in range(WORLD):
        same_logs(results[rank]["references"][reference], expected)


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_rank_without_weights_brings_its_share_of_the_reference(results, folder, reference):
    pytest.importorskip("accelerate", reason="needs the [train] extra")
    needed(reference)
    expected = [entry["loss"] for entry in trained(folder, reference, mixed=True, per_device_train_batch_size=8)]
    for rank in range(WORLD):
        assert [entry["loss"] for entry in results[rank]["mixed"][reference]] == pytest.approx(expected, abs=1e-5)


def test_logprobs_of_a_model_without_an_engine(results):
    pytest.importorskip("accelerate", reason="needs the [train] extra")
    expected = reference_logprobs(tiny_model(), unreferenced(weighted_rows()))
    for rank in range(WORLD):
        for ours, theirs in zip(results[rank]["logprobs"], expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
