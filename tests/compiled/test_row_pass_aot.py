"""The row pass compiles for every chip without stack or spills, in every form that the driver launches."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastdss.kernels.configs import row_pass_config
from fastdss.kernels.row_pass import row_gradient_bwd_kernel, row_pass_fwd_kernel, row_stats_fwd_kernel

from fastdss.loss.objective import Objective

from .aot import SHARED_LIMIT, STACK, TARGETS, Resources, compile_kernel

# kl, dtype of the logits, dtype of the gradient, everything switched on (but dft, with which smoothing does not go)
FORMS = [
    pytest.param("none", "fp32", "bf16", False, id="ce bf16"),
    pytest.param("k3", "fp32", "bf16", True, id="k3 bf16, all options"),
    pytest.param("reverse", "fp32", "bf16", True, id="reverse bf16, all options"),
    pytest.param("forward", "fp32", "fp32", False, id="forward fp32"),
    pytest.param("reverse", "fp64", "fp64", False, id="reverse fp64"),
]


def _objective(kl: str, everything: bool) -> dict[str, Any]:
    cap = 30.0 if everything else None
    return {
        "KL": Objective(kl).kl_code,
        "SCALE": 0.5 if everything else 1.0,
        "SOFTCAP": cap,
        "REF_SCALE": 0.5 if everything else 1.0,
        "REF_SOFTCAP": cap,
    }


def _check(resources: Resources, chip: str, stack: int = 0) -> None:
    assert resources.stack <= max(stack, STACK)
    assert resources.spills == 0
    assert resources.shared <= SHARED_LIMIT[chip]
    assert 0 < resources.registers <= 255


def _pointers(kl: str, dtype: str, out: str, everything: bool) -> dict[str, str | None]:
    full = kl in ("reverse", "forward")
    return {
        "logits_ptr": f"*{dtype}",
        "ref_logits_ptr": f"*{dtype}" if full else None,
        "out_ptr": f"*{out}",
        "bias_ptr": "*bf16" if everything else None,
        "ref_bias_ptr": "*bf16" if everything and full else None,
        "label_ptr": "*i64",
        "ce_weight_ptr": f"*{dtype}",
        "kl_weight_ptr": None if kl == "none" else f"*{dtype}",
        "ref_logprob_ptr": f"*{dtype}" if kl.startswith("k") else None,
    }


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize(("kl", "dtype", "out", "everything"), FORMS)
def test_fused(chip: str, kl: str, dtype: str, out: str, everything: bool) -> None:
    _check_row_pass(chip, kl, dtype, out, everything, dft=False)


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize(
    ("kl", "dtype", "out"),
    [("k2", "fp32", "fp16"), ("reverse", "fp32", "bf16"), ("forward", "fp32", "bf16"), ("reverse", "fp64", "fp64")],
)
def test_dynamic_fine_tuning(chip: str, kl: str, dtype: str, out: str) -> None:
    """fp16 parameters, which take the row pass whatever the form, and the full forms (ASFT's is the reverse one); with
    entropies, as trainers ask for them."""
    stack = 24 if dtype == "fp64" else 0  # bytes, at 80 registers: fp64 with entropies is for checks, not for speed
    _check_row_pass(chip, kl, dtype, out, everything=False, dft=True, stats=True, stack=stack)


@pytest.mark.parametrize("chip", TARGETS)
@pytest.mark.parametrize("dft", [False, True])
def test_the_reverse_form_without_anything_more(chip: str, dft: bool) -> None:
    """On sm_80 and sm_90 the compiler sets 8 bytes aside on the stack, at 40 registers and without a spill. It does not
    at 52 registers with entropies, so nothing runs short; the H100's figures of this form are of such a kernel."""
    _check_row_pass(chip, "reverse", "fp32", "bf16", everything=False, dft=dft, stack=8)


def _check_row_pass(
    chip: str, kl: str, dtype: str, out: str, everything: bool, *, dft: bool, stats: bool = False, stack: int = 0
) -> None:
    arguments = _pointers(kl, dtype, out, everything)
    arguments |= {name: f"*{dtype}" for name in ("token_ce_ptr", "token_kl_ptr", "lost_ptr")}
    arguments |= {name: f"*{dtype}" if everything or stats else None for name in ("entropy_ptr", "correct_ptr")}
    arguments |= {"width": "i32", "stride_logits": "i32", "stride_ref": "i32", "stride_out": "i32"}
    config = row_pass_config(
        128256, 8 if dtype == "fp64" else 4, has_ref=kl in ("reverse", "forward"), backend=TARGETS[chip].backend
    )
    constants = _objective(kl, everything) | {
        "DFT": dft,
        "SMOOTHING": 0.1 if everything else 0.0,
        "Z_LOSS": 1e-4 if everything else 0.0,
        "GRAD": True,
        "BLOCK_V": config.block_v,
    }
    made = compile_kernel(row_pass_fwd_kernel, chip, arguments, constants, num_warps=config.num_warps)
    _check(made, chip, stack)
    if chip.startswith("sm_"):
        assert re.search(r"ld\.global\.v(4\.b32|2\.b64)", made.assembly), "not 16 bytes at a time"


@pytest.mark.parametrize("chip", ["sm_90", "gfx942"])
@pytest.mark.parametrize("kl", ["none", "reverse"])
def test_split_over_ranks(chip: str, kl: str) -> None:
    """Statistics and gradient as kernels of their own."""
    pointers = _pointers(kl, "fp32", "bf16", everything=True)
    config = row_pass_config(32064, 4, has_ref=kl == "reverse", backend=TARGETS[chip].backend)
    constants = _objective(kl, everything=True) | {"BLOCK_V": config.block_v}
    sizes = {"width": "i32", "vocab_start": "i32", "stride_logits": "i32", "stride_ref": "i32"}
    names = ("logits_ptr", "ref_logits_ptr", "bias_ptr", "ref_bias_ptr", "label_ptr")
    stats = {name: pointers[name] for name in names} | {"stats_ptr": "*fp32", "stride_stats": "i32"} | sizes
    made = compile_kernel(
        row_stats_fwd_kernel, chip, stats, constants | {"WITH_MEAN": True, "STATS": True}, num_warps=config.num_warps
    )
    _check(made, chip)
    gradient = {name: pointers[name] for name in (*names, "out_ptr")} | sizes
    gradient |= {"factor_ptr": "*fp32", "lost_ptr": "*fp32", "stride_out": "i32", "stride_factor": "i32"}
    _check(compile_kernel(row_gradient_bwd_kernel, chip, gradient, constants, num_warps=config.num_warps), chip)
