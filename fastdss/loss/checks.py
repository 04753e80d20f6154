"""The checks of the losses' arguments: shapes, dtypes, devices, options, and values that the host can read at once."""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any

import torch
from torch import Tensor

from fastdss.errors import UserError, UserTypeError
from fastdss.upstream.deepspeed import is_empty_share

from .objective import FULL_KL, KL, LABEL_KL, Objective

BACKENDS = ("auto", "torch", "triton", "fused")


def choose_backend(backend: str, device: torch.device) -> str:
    """The engine for ``backend=``: "torch" or "triton".

    "fused" uses the "triton" engine too; what it changes is the product of rows and head, see ``LossCall.product``.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return "torch"
    try:
        from fastdss.kernels.row_pass import interpreted
    except ModuleNotFoundError as error:
        raise UserError(f"backend={backend!r} needs triton ({error}): install it, or use backend='torch'") from error
    if device.type != "cuda" and not interpreted():
        raise UserError(f"backend={backend!r} needs a CUDA or ROCm device, but hidden is on {device}")
    return "triton"


def checked_dtype(hidden: Tensor, lm_head: Tensor, labels: Tensor, **weights: Tensor | None) -> torch.dtype:
    """Check that the tensors fit each other, and return the dtype of sums and weights: fp32, or fp64 for fp64."""
    check_gathered(hidden=hidden, lm_head=lm_head, labels=labels, **weights)
    check_labels(labels)
    check_shapes(hidden, lm_head, labels)
    check_devices(hidden, lm_head=lm_head, labels=labels, **weights)
    return torch.float64 if compute_dtype(hidden, lm_head) == torch.float64 else torch.float32


def on_host(tensor: Tensor) -> bool:
    """Whether the host can read the values without waiting for a device and without breaking a graph being traced."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def vocabulary_size(lm_head: Tensor, group: Any) -> int:
    """The number of words of all ranks of ``group`` together."""
    return lm_head.shape[0] * (1 if group is None else group.size())


def sizes(x: Tensor) -> list[int]:
    """The shape as an error prints it."""
    return list(x.shape)


def check_gathered(**tensors: Tensor | None) -> None:
    """Refuse what is no tensor, and parameters that FSDP or ZeRO-3 has sharded, for this rank holds only some of their
    values. None passes."""
    dtensor = sys.modules.get("torch.distributed.tensor")  # importing it is slow; if nobody did, there are none
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise UserTypeError(f"{name}: expected a Tensor, got {type(tensor).__name__}")
        if dtensor is not None and isinstance(tensor, dtensor.DTensor):
            raise UserTypeError(
                f"{name} is a DTensor: gather it first, with {name}.full_tensor() or by calling the loss inside the "
                "forward of the FSDP unit that owns it; for a vocabulary split over ranks pass to_local() and group="
            )
        if is_empty_share(tensor):
            raise UserError(
                f"{name} is an ungathered ZeRO-3 shard: wrap the call in deepspeed.zero.GatheredParameters([{name}])"
            )


def check_shapes(hidden: Tensor, lm_head: Tensor, labels: Tensor) -> None:
    if hidden.dim() < 1 or hidden.shape[:-1] != labels.shape:
        turned = "; it comes before lm_head" if lm_head.dim() and lm_head.shape[:-1] == labels.shape else ""
        raise UserError(
            f"hidden: expected [..., D] with the shape of labels, {sizes(labels)}, got {sizes(hidden)}{turned}"
        )
    if lm_head.dim() != 2 or lm_head.shape[1] != hidden.shape[-1]:
        raise UserError(f"lm_head: expected [V, {hidden.shape[-1]}], got {sizes(lm_head)}")
    if 0 in lm_head.shape:
        raise UserError(f"lm_head: expected a weight that is not empty, got {sizes(lm_head)}")


def check_labels(labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserTypeError(f"labels: expected integers, got {labels.dtype}")


def check_devices(hidden: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != hidden.device:
            raise UserError(f"{name} is on {tensor.device}, hidden on {hidden.device}")


def check_bias(name: str, bias: Tensor | None, lm_head: Tensor) -> None:
    check_gathered(**{name: bias})
    if bias is not None and bias.shape != lm_head.shape[:1]:
        raise UserError(f"{name}: expected [{lm_head.shape[0]}], got {sizes(bias)}")
    if bias is not None and not bias.is_floating_point():
        raise UserTypeError(f"{name}: expected a floating dtype, got {bias.dtype}")


def compute_dtype(hidden: Tensor, lm_head: Tensor, prefix: str = "") -> torch.dtype:
    """The dtype of the factors of the products: autocast's if it is on, else that of both tensors."""
    for name, tensor in (("hidden", hidden), ("lm_head", lm_head)):
        if tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            raise UserTypeError(f"{prefix}{name}: expected float64, float32, bfloat16 or float16, got {tensor.dtype}")
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (hidden.dtype, lm_head.dtype):
        return torch.get_autocast_dtype(device)
    if hidden.dtype != lm_head.dtype:
        raise UserTypeError(
            f"{prefix}hidden is {hidden.dtype}, {prefix}lm_head {lm_head.dtype}: cast one or use autocast"
        )
    return hidden.dtype


def check_number(name: str, value: Any, kind: type = numbers.Real) -> None:
    """Refuse an option that is no number of Python's or numpy's. A tensor would be taken as a constant, even if it were
    a learned one that waits for its gradient."""
    if not isinstance(value, kind):
        wanted = "a number" if kind is numbers.Real else "an integer"
        remedy = ": pass its .item(), it gets no gradient" if isinstance(value, Tensor) else ""
        raise UserTypeError(f"{name}: expected {wanted}, got {type(value).__name__}{remedy}")


# Comparisons with infinity, because torch.compile cannot trace math.isfinite of a number that varies between calls.
def check_objective(o: Objective) -> None:
    for name in ("label_smoothing", "z_loss", "logit_scale", "ref_logit_scale"):
        check_number(name, getattr(o, name))
    if not 0 <= o.label_smoothing < 1:
        raise UserError(f"label_smoothing: expected a number in [0, 1), got {o.label_smoothing}")
    if not 0 <= o.z_loss < math.inf:
        raise UserError(f"z_loss: expected a finite number >= 0, got {o.z_loss}")
    if o.dft and (o.label_smoothing or o.z_loss):
        raise UserError("dft weighs -log p alone by p: expected label_smoothing=0 and z_loss=0")
    for name, scale in (("logit_scale", o.logit_scale), ("ref_logit_scale", o.ref_logit_scale)):
        if not -math.inf < scale < math.inf:
            raise UserError(f"{name}: expected a finite number, got {scale}")
    for name, cap in (("softcap", o.softcap), ("ref_softcap", o.ref_softcap)):
        if cap is None:
            continue
        check_number(name, cap)
        if not 0 < cap < math.inf:
            raise UserError(f"{name}: expected None or a positive number, got {cap}")


def check_grad_tol(tolerance: float | None) -> None:
    if tolerance is None:
        return
    check_number("grad_tol", tolerance)
    if not 0 < tolerance < 1:
        raise UserError(f"grad_tol: expected None or a number in (0, 1), got {tolerance}")


def check_filter(grad_tol: float | None, compact: bool) -> None:
    check_grad_tol(grad_tol)
    if grad_tol is not None and not compact:
        raise UserError("grad_tol counts columns on the host, which compact=False (CUDA graphs) rules out")


def check_reference(
    kl: str, ref_logprobs: Any, ref_hidden: Any, ref_lm_head: Any, ref_slope: Any, ref_offset: Any
) -> None:
    if kl not in LABEL_KL + FULL_KL:
        raise UserError(f"kl: expected one of {', '.join(KL)}, got {kl!r}")
    if sum(given is not None for given in (ref_logprobs, ref_hidden, ref_slope)) != 1:
        raise UserError(
            "give the reference either as ref_logprobs, or as ref_hidden with ref_lm_head, or as ref_slope with "
            "ref_offset"
        )
    if ref_slope is not None and kl != KL.FORWARD:
        raise UserError(f"kl={str(kl)!r}: ref_slope serves the forward KL alone")
    if ref_hidden is not None and ref_lm_head is None:
        raise UserError("ref_hidden needs ref_lm_head (lm_head itself where the head is shared and frozen)")
    if ref_hidden is None and ref_lm_head is not None:
        raise UserError("ref_lm_head is of no use without ref_hidden")
    if ref_offset is not None and ref_slope is None:
        raise UserError("ref_offset is of no use without ref_slope")
    if kl in FULL_KL and ref_logprobs is not None:
        raise UserError(f"kl={kl!r} sums over the vocabulary: it needs ref_hidden and ref_lm_head, not ref_logprobs")


def check_constrained(csft_beta: Any, kl: str, o: Objective, dtype: Any) -> None:
    """Refuse what does not go with constrained fine-tuning: a full KL, another change of the first term, and fp16."""
    if csft_beta is None:
        return
    check_constrained_kl(kl)
    if o.dft or o.label_smoothing or o.z_loss:
        raise UserError("csft_beta makes another first term: expected dft=False, label_smoothing=0 and z_loss=0")
    if dtype == torch.float16:
        raise UserTypeError("csft_beta: expected float64, float32 or bfloat16, got float16")


def check_constrained_kl(kl: str) -> None:
    if kl in FULL_KL:
        raise UserError(
            f"csft_beta reads each label's log-probability under the reference alone: expected kl to be one of "
            f"{', '.join(LABEL_KL)}, got {str(kl)!r}"
        )


def check_kl_scale(kl_scale: float) -> None:
    check_number("kl_scale", kl_scale)
    if not 0 <= kl_scale < math.inf:
        raise UserError(f"kl_scale: expected a finite number >= 0, got {kl_scale}")


def check_num_items(num_items_in_batch: int | float | Tensor | None) -> None:
    """Check that the number, if the host knows it, is positive and finite. A tensor may be 0, for no label at all."""
    known = not isinstance(num_items_in_batch, Tensor) or on_host(num_items_in_batch)
    if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.numel() != 1:
        raise UserError(f"num_items_in_batch: expected one number, got {sizes(num_items_in_batch)}")
    if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.requires_grad:
        raise UserError(
            "num_items_in_batch: expected a constant, got one that requires a gradient: pass it through .detach()"
        )
    if num_items_in_batch is None or not known:
        return
    if not isinstance(num_items_in_batch, Tensor):
        check_number("num_items_in_batch", num_items_in_batch)
    value = float(num_items_in_batch)
    if not (0 < value < math.inf or (value == 0 and isinstance(num_items_in_batch, Tensor))):
        raise UserError(f"num_items_in_batch: expected a positive number, got {num_items_in_batch}")


def check_values(
    labels: Tensor, scores: Tensor | None, name: str, ignore_index: int, vocab_size: int | None, *, unit_interval: bool
) -> None:
    """Raise ``UserError`` for labels and scores that no loss takes.

    Call it for tensors on a CPU: on a device the host would have to wait for the values. ``DSSCollator`` calls it,
    through ``live_rows``, for the rows of its batch. The loss calls it again if the batch is on a CPU, because only the
    loss knows the size of the vocabulary, and a label beyond it would read another row's memory.
    """
    labels = labels.long()  # a narrow dtype would compare with what is left of an ignore_index that it cannot hold
    ignored = labels == ignore_index
    if labels.numel():
        low, high = map(int, labels.masked_fill(ignored, 0).aminmax())
        if low < 0 or (vocab_size is not None and high >= vocab_size):
            bad = (labels < 0) if vocab_size is None else (labels < 0) | (labels >= vocab_size)
            size = "V" if vocab_size is None else vocab_size
            refuse_first(bad & ~ignored, "labels", labels, f"a label in [0, {size}) or {ignore_index}")
    if scores is None or not scores.numel():
        return
    least, most = map(float, scores.aminmax())  # both are NaN if any score is
    if not (least >= 0 and most <= 1 if unit_interval else least >= 0 and most < math.inf):
        valid = scores.isfinite() & (scores >= 0)
        valid &= (scores <= 1) if unit_interval else True
        refuse_first(
            ~(valid | ignored), name, scores, "a number in [0, 1]" if unit_interval else "a finite number >= 0"
        )


def refuse_first(bad: Tensor, name: str, values: Tensor, rule: str) -> None:
    """Raise ``UserError`` that names the first of ``values`` at which ``bad`` is True, if there is one."""
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise UserError(f"{name}[{', '.join(map(str, where))}]: expected {rule}, got {values[where].item()}")
