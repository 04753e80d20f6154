"""The shaped loss's options are one thing: checked once, said once, and taken whole by everything that trains."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fastdss import KL, DSSConfig, DSSTrainer, enable_dss
from fastdss.train.enable import dss_config
from tests.support.tiny_models import tiny_model
from tests.support.trainers import arguments, rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl": "k4"}, "kl: expected one of k1, k2, k3, reverse, forward, got 'k4'"),
        ({"kl_scale": math.inf}, "kl_scale: expected a finite number >= 0, got inf"),
        ({"kl_scale": math.nan}, "kl_scale: expected a finite number >= 0, got nan"),
        ({"kl_scale": -0.1}, "kl_scale: expected a finite number >= 0, got -0.1"),
        ({"kl_scale": "0.5"}, "kl_scale: expected a finite number >= 0, got '0.5'"),
        ({"backend": "cuda"}, "backend: expected one of auto, torch, triton, fused, got 'cuda'"),
        ({"chunk_bytes": 0}, "chunk_bytes: expected a positive number, got 0"),
        ({"chunk_bytes": "1 GiB"}, "chunk_bytes: expected a number, got str"),
        ({"label_smoothing": "0.1"}, "label_smoothing: expected a number, got str"),
        ({"dft": 1}, "dft: expected True or False, got 1"),
        ({"dft": True, "label_smoothing": 0.1}, "dft weighs -log p alone by p: expected label_smoothing=0, got 0.1"),
        ({"csft_beta": 0}, "csft_beta: expected None or a positive, finite number, got 0"),
        ({"csft_beta": math.inf}, "csft_beta: expected None or a positive, finite number, got inf"),
        ({"csft_beta": "0.1"}, "csft_beta: expected None or a positive, finite number, got '0.1'"),
        ({"csft_beta": True}, "csft_beta: expected None or a positive, finite number, got True"),
        ({"csft_beta": 0.1, "dft": True}, "csft_beta makes another first term: .* got True and 0.0"),
        ({"csft_beta": 0.1, "label_smoothing": 0.1}, "csft_beta makes another first term: .* got False and 0.1"),
        ({"csft_beta": 0.1, "kl": "forward"}, "csft_beta .* expected kl to be one of k1, k2, k3, got 'forward'"),
        ({"grad_tol": 1.0}, r"grad_tol: expected None or a number in \(0, 1\), got 1.0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_first_step(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DSSConfig(**options)
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        enable_dss(model, **options)
    assert dss_config(model) is None
    with pytest.raises(ValueError, match=message):
        DSSTrainer(model=model, args=arguments("unused"), train_dataset=rows(), **options)


def test_shortcuts_win_over_the_whole_and_none_is_not_said() -> None:
    whole = DSSConfig(kl="k3", kl_scale=0.1, chunk_bytes=1000)
    assert whole.with_said(kl=None, kl_scale=0.2) == DSSConfig("k3", 0.2, chunk_bytes=1000)
    assert dss_config(enable_dss(tiny_model(), whole, kl_scale=0.2)) == whole.with_said(kl_scale=0.2)
    assert DSSConfig(kl="reverse").kl is KL.REVERSE
    assert DSSConfig(kl="reverse").needs_logits
    assert not DSSConfig(kl="reverse", kl_scale=0).needs_logits
    assert not DSSConfig(kl_scale=0).needs_reference
    assert DSSConfig(kl_scale=0, csft_beta=1).needs_reference


@pytest.mark.parametrize(
    "said",
    [
        {"kl": "k2", "kl_scale": 0.5},  # the defaults, said aloud
        {"kl": "k2"},
        {"kl_scale": 0.5},
        {"config": DSSConfig()},
        {"grad_tol": 2**-12},
        {"chunk_bytes": 1 << 20},
        {"backend": "torch"},
    ],
)
def test_a_trainer_that_says_otherwise_than_the_model_is_refused(said: dict[str, Any]) -> None:
    model = enable_dss(tiny_model(), kl="reverse", kl_scale=0.1)
    with pytest.raises(ValueError, match=r"expected .* as in enable_dss, got .*: say it once"):
        DSSTrainer(model=model, args=arguments("unused"), train_dataset=rows(), ref_model=tiny_model(), **said)
    assert dss_config(model) == DSSConfig("reverse", 0.1)


def test_a_trainer_that_says_the_same_or_nothing_keeps_the_model_as_it_is() -> None:
    for said in ({}, {"kl": "k3"}, {"config": DSSConfig("k3", 0.1)}):
        model = enable_dss(tiny_model(), kl="k3", kl_scale=0.1)
        trainer = DSSTrainer(model=model, args=arguments("unused"), train_dataset=rows(), **said)
        assert dss_config(trainer.model) == DSSConfig("k3", 0.1)


def test_a_trainer_sets_what_the_loss_knows() -> None:
    options: dict[str, Any] = {"kl": "k1", "grad_tol": 2**-12, "chunk_bytes": 1 << 16, "backend": "torch"}
    trainer = DSSTrainer(model=tiny_model(), args=arguments("unused"), train_dataset=rows(), **options)
    assert dss_config(trainer.model) == DSSConfig(**options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'kl_scales'"):
        DSSTrainer(model=tiny_model(), args=arguments("unused"), train_dataset=rows(), kl_scales=1.0)
