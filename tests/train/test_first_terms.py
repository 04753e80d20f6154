"""Other first terms and stored slopes in both trainers: each takes the steps of its written-out formula in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.tiny_models import gradients, own_logits, tiny_batch, tiny_model, tiny_tokenizer

pytest.importorskip("accelerate", reason="needs the [train] extra")

from fastdss import DSSConfig, UserError, enable_dss, reference_columns
from fastdss.train.collator import COLUMNS, DSSCollator
from fastdss.train.trainer import DSSTrainer
from tests.support.trainers import LR, arguments, rows

BETA, SCALE, STEPS = 0.7, 0.3, 2


def formula(logits: Tensor, ref_logits: Tensor, batch: dict[str, Tensor], config: DSSConfig) -> tuple[Tensor, Tensor]:
    """``(first part, KL part)`` of the mean over labels, on logits [B, T, V] of both models."""
    labels, star = batch["labels"][:, 1:], batch["token_weights"][:, 1:].double()
    counts = labels != -100
    log_p, log_q = (x[:, :-1].log_softmax(-1) for x in (logits, ref_logits))
    logp, logq = (x.gather(-1, labels.clamp(min=0)[..., None])[..., 0] for x in (log_p, log_q))
    d = logp - logq
    first = -logp
    if config.dft:
        first = logp.exp().detach() * -logp
    if config.csft_beta is not None:
        first = -(2 / config.csft_beta) * F.logsigmoid(config.csft_beta * d)
    kl = {
        "k2": d**2 / 2,
        "reverse": (log_p.exp() * (log_p - log_q)).sum(-1),
        "forward": (log_q.exp() * (log_q - log_p)).sum(-1),
    }[config.kl]
    parts = star * first, (1 - star) * config.kl_scale * kl
    found = [part[counts].sum() / counts.sum() for part in parts]
    return found[0], found[1]


CSFT = {
    "with a KL": DSSConfig(csft_beta=BETA, kl_scale=SCALE),
    "alone": DSSConfig(csft_beta=BETA, kl_scale=0.0),
}
FORMS = {
    "dft": DSSConfig(dft=True, kl_scale=SCALE),
    "asft": DSSConfig(dft=True, kl="reverse", kl_scale=SCALE),
    **{f"csft {name}": config for name, config in CSFT.items()},
    "forward": DSSConfig("forward", SCALE),
    "forward, dft": DSSConfig("forward", SCALE, dft=True),
}


def frozen_head(seed: int = 0) -> Any:
    model = tiny_model(seed=seed)
    model.lm_head.requires_grad_(False)
    return model


def reference() -> Any:
    """Another model with the policy's own head, as of a policy that was trained below it."""
    found = tiny_model(seed=5)
    found.lm_head.load_state_dict(frozen_head().lm_head.state_dict())
    return found


def in_order(cls: type) -> type:
    class InOrder(cls):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return InOrder


def made(name: str, model: Any, folder: Path, data: list[dict[str, Any]], config: DSSConfig, ref_model: Any) -> Any:
    if name == "DSSTrainer":
        return in_order(DSSTrainer)(
            model=model, args=arguments(folder, max_steps=STEPS), train_dataset=data, config=config, ref_model=ref_model
        )
    trl = pytest.importorskip("trl", reason="needs the [train] extra")
    datasets = pytest.importorskip("datasets", reason="needs the [train] extra")
    from fastdss.train.sft_trainer import DSSSFTTrainer

    options = arguments(folder, max_steps=STEPS).to_dict()
    kept = {"use_cpu", "per_device_train_batch_size", "max_steps", "learning_rate", "lr_scheduler_type", "optim",
            "max_grad_norm", "logging_steps", "save_strategy", "disable_tqdm", "data_seed"}  # fmt: skip
    args = trl.SFTConfig(
        str(folder), bf16=False, report_to="none", max_length=None, gradient_checkpointing=False,
        **{option: options[option] for option in kept},
    )  # fmt: skip
    return in_order(DSSSFTTrainer)(
        model, args=args, train_dataset=datasets.Dataset.from_list(data), processing_class=tiny_tokenizer(),
        config=config, ref_model=ref_model,
    )  # fmt: skip


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slopes stored in float64, so that all but storage is held to the formula."""
    monkeypatch.setitem(COLUMNS, "ref_slope", (torch.float64, 0.0))
    monkeypatch.setitem(COLUMNS, "ref_offset", (torch.float64, 0.0))
    monkeypatch.setitem(COLUMNS, "ref_logprobs", (torch.float64, 0.0))


@pytest.mark.parametrize(
    ("form", "source"),
    [(form, source) for form in FORMS for source in ("columns", "live") if (form, source) != ("asft", "columns")],
)  # the reverse KL has no columns
@pytest.mark.parametrize("trainer", ["DSSTrainer", "DSSSFTTrainer"])
def test_steps_are_those_of_the_formula(tmp_path: Path, unrounded: None, trainer: str, form: str, source: str) -> None:
    config, data = FORMS[form], rows(columns=("input_ids", "labels", "token_weights"))
    given = data
    if source == "columns":
        answers = reference_columns(reference(), data, forward_kl=config.kl == "forward")
        given = [row | {name: _listed(value) for name, value in more.items()} for row, more in
                 zip(data, answers, strict=True)]  # fmt: skip
    model = frozen_head()
    run = made(trainer, model, tmp_path, given, config, reference() if source == "live" else None)
    run.train()
    expected, logs = frozen_head(), [entry for entry in run.state.log_history if "ce" in entry]
    for step in range(STEPS):
        batch = DSSCollator(0)(data[step * 4 :][:4])
        ref_logits = own_logits(reference(), batch).detach()
        first, kl = formula(own_logits(expected, batch), ref_logits, batch, config)
        assert logs[step]["ce"] == pytest.approx(first.item(), rel=1e-6)
        assert logs[step]["kl"] == pytest.approx(kl.item(), rel=1e-5, abs=1e-9)
        found = gradients(expected, first + kl)
        with torch.no_grad():
            for name, gradient in found.items():
                expected.get_parameter(name).sub_(LR * gradient)
    start = dict(frozen_head().named_parameters())
    for name, parameter in model.named_parameters():
        moved = (expected.get_parameter(name) - start[name]).norm()
        assert (parameter - expected.get_parameter(name)).norm() <= 1e-6 * moved, name
        assert bool(moved > 0) == parameter.requires_grad, name


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("config", CSFT.values(), ids=CSFT)
def test_the_bounded_slope_through_a_model(config: DSSConfig) -> None:
    """Loss and gradients of every parameter, the head's among them."""
    model, batch = tiny_model(), tiny_batch()
    ref_logits = own_logits(reference(), batch).detach()
    log_q = ref_logits[:, :-1].log_softmax(-1).gather(-1, batch["labels"][:, 1:].clamp(min=0)[..., None])[..., 0]
    batch["ref_logprobs"] = F.pad(log_q, (1, 0))
    expected = sum(formula(own_logits(model, batch), ref_logits, batch, config))
    truth = gradients(model, expected)
    found = enable_dss(model, config)(**batch)
    assert found.loss.item() == pytest.approx(expected.item(), abs=1e-12)
    for name, gradient in gradients(model, found.loss).items():
        assert (gradient - truth[name]).norm() <= 1e-10 * truth[name].norm(), name


@pytest.mark.parametrize("trainer", ["DSSTrainer", "DSSSFTTrainer"])
@pytest.mark.parametrize("config", CSFT.values(), ids=CSFT)
def test_a_missing_reference_is_an_error_by_name(tmp_path: Path, trainer: str, config: DSSConfig) -> None:
    batch = tiny_batch()
    del batch["ref_logprobs"]
    with pytest.raises(UserError, match="token_weights need a reference: ref_logprobs"):
        enable_dss(tiny_model(), config)(**batch)
    data = rows(columns=("input_ids", "labels", "token_weights"))
    with pytest.raises(UserError, match=r"token_weights need a reference: .* in DSSTrainer a column ref_logprobs"):
        made(trainer, tiny_model(), tmp_path, data, config, None).train()
