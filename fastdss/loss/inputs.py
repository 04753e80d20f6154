"""From what users pass to what the ops take: checks, flattening, shifting, per-row weights."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .call import LossCall
from .objective import FULL_KL, KL, LABEL_KL, Objective

BACKENDS = ("auto", "torch", "triton")


class LiveRows(NamedTuple):
    """What ``live_rows`` found, for ``rows=``; a NamedTuple, so that accelerate and DataLoader can move it."""

    index: Tensor  # type: ignore[assignment]  # [n] int64 positions in the flat batch, those with a KL weight first
    kl_rows: int  # how many of them have a KL weight

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> LiveRows:
        return LiveRows(self.index.to(device, non_blocking=non_blocking), self.kl_rows)


class LabelReference(NamedTuple):
    """The reference's log-probabilities of the labels, flattened: all that the label forms of the KL need."""

    logprobs: Tensor  # [N]


class HeadReference(NamedTuple):
    """The reference's hidden states and head, flattened, from which its logits can be made."""

    hidden: Tensor  # [N, D']
    lm_head: Tensor  # [V, D']
    bias: Tensor | None  # [V]


class RunOptions(NamedTuple):
    """How to compute, as opposed to what; none but ``filter_eps`` changes the result."""

    rows: LiveRows | Tensor | None
    compact: bool
    backend: str
    chunk_bytes: int | None
    group: Any
    filter_eps: float | None = None


class RowWeights(NamedTuple):
    """What each row counts, flattened and 0 where its label does not count."""

    ce: Tensor  # [N] of the cross-entropy
    kl: Tensor | None  # [N] of the KL term; None: there is none
    counts: Tensor  # [N] which labels count


class Batch:
    """One checked batch, flattened to rows: hidden [N, D], labels and weights [N]; see ``weighted`` and ``shaped``."""

    def __init__(
        self,
        hidden: Tensor,
        lm_head: Tensor,
        labels: Tensor,
        weights: RowWeights,
        *,
        ignore_index: int,
        shift: bool,
    ) -> None:
        self.shape, self.shift = labels.shape, shift
        self.compute_dtype = compute_dtype(hidden, lm_head)
        self.ce_weight, self.kl_weight, self.counts = weights
        self.labels = _shifted(labels.long(), shift, ignore_index).reshape(-1).contiguous()
        self.hidden, self.lm_head = hidden.reshape(-1, hidden.shape[-1]), lm_head

    @classmethod
    def weighted(
        cls,
        hidden: Tensor,
        lm_head: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        *,
        ignore_index: int,
        shift: bool,
        group: Any,
    ) -> Batch:
        """Cross-entropy with weights >= 0, or all 1; no KL term."""
        dtype = _checked_dtype(hidden, lm_head, labels, weights=weights)
        found = plain_weights(labels, weights, ignore_index=ignore_index, shift=shift, dtype=dtype)
        if _on_host(labels):
            check_values(labels, weights, "weights", ignore_index, _words(lm_head, group), unit_interval=False)
        return cls(hidden, lm_head, labels, found, ignore_index=ignore_index, shift=shift)

    @classmethod
    def shaped(
        cls,
        hidden: Tensor,
        lm_head: Tensor,
        labels: Tensor,
        token_weights: Tensor,
        kl_scale: float,
        *,
        ignore_index: int,
        shift: bool,
        group: Any,
    ) -> Batch:
        """Dynamic safety shaping: a token's weight w in [0, 1] for the cross-entropy, (1 - w) * kl_scale for the KL."""
        name = "token_weights"
        dtype = _checked_dtype(hidden, lm_head, labels, token_weights=token_weights)
        found = shaping_weights(
            labels, token_weights, name, kl_scale, ignore_index=ignore_index, shift=shift, dtype=dtype
        )
        if _on_host(labels):
            check_values(labels, token_weights, name, ignore_index, _words(lm_head, group), unit_interval=True)
        return cls(hidden, lm_head, labels, found, ignore_index=ignore_index, shift=shift)

    def reference_logprobs(self, ref_logprobs: Tensor) -> LabelReference:
        if ref_logprobs.shape != self.shape:
            raise ValueError(
                f"ref_logprobs: expected the shape of labels, {list(self.shape)}, got {_sizes(ref_logprobs)}"
            )
        if not ref_logprobs.is_floating_point():
            raise TypeError(f"ref_logprobs: expected a floating dtype, got {ref_logprobs.dtype}")
        _check_devices(self.hidden, ref_logprobs=ref_logprobs)
        logprobs = _shifted(ref_logprobs.detach(), self.shift, 0).reshape(-1)
        return LabelReference(logprobs.to(self.ce_weight.dtype).contiguous())

    def reference_head(self, ref_hidden: Tensor, ref_lm_head: Tensor, ref_bias: Tensor | None) -> HeadReference:
        _check_gathered(ref_hidden=ref_hidden, ref_lm_head=ref_lm_head)
        if ref_hidden.shape[:-1] != self.shape:
            raise ValueError(f"ref_hidden: expected {[*self.shape, 'D']} like labels, got {_sizes(ref_hidden)}")
        if ref_lm_head.dim() != 2 or ref_lm_head.shape[1] != ref_hidden.shape[-1]:
            raise ValueError(f"ref_lm_head: expected [V, {ref_hidden.shape[-1]}], got {_sizes(ref_lm_head)}")
        if ref_lm_head.shape[0] != self.lm_head.shape[0]:
            raise ValueError(
                f"ref_lm_head has a vocabulary of {ref_lm_head.shape[0]}, lm_head one of {self.lm_head.shape[0]}"
            )
        _check_bias("ref_bias", ref_bias, self.lm_head)
        _check_devices(self.hidden, ref_hidden=ref_hidden, ref_lm_head=ref_lm_head, ref_bias=ref_bias)
        dtype = compute_dtype(ref_hidden, ref_lm_head, "ref_")
        if (dtype == torch.float64) != (self.compute_dtype == torch.float64):
            raise TypeError(f"reference and policy must both be float64 or neither, got {dtype}, {self.compute_dtype}")
        return HeadReference(
            ref_hidden.detach().reshape(-1, ref_hidden.shape[-1]).to(dtype),
            ref_lm_head.detach().to(dtype),
            None if ref_bias is None else ref_bias.detach().contiguous(),
        )

    def check_main_grad(self, main_grad: Tensor) -> None:
        """A buffer that backward can add to; ValueError or TypeError if not."""
        _check_gathered(main_grad=main_grad)
        if main_grad.shape != self.lm_head.shape:
            raise ValueError(f"main_grad: expected {_sizes(self.lm_head)} like lm_head, got {_sizes(main_grad)}")
        if main_grad.dtype != self.ce_weight.dtype:
            raise TypeError(f"main_grad: expected {self.ce_weight.dtype}, got {main_grad.dtype}")
        _check_devices(self.hidden, main_grad=main_grad)
        if main_grad.requires_grad:
            raise ValueError("main_grad requires a gradient, but it is a buffer: make it with torch.zeros")
        if torch.is_grad_enabled() and not self.lm_head.requires_grad:
            raise ValueError("main_grad was given, but lm_head is frozen: leave it out")

    def items(self, num_items_in_batch: int | float | Tensor | None) -> int | float | Tensor:
        """What a mean divides by. A step without any label that counts divides 0 by 1, whoever counted its items."""
        count = self.counts.sum()
        if num_items_in_batch is None:
            return count.clamp(min=1)
        if not isinstance(num_items_in_batch, Tensor):
            return num_items_in_batch
        there = num_items_in_batch.to(count.device, self.ce_weight.dtype, non_blocking=True).reshape(())
        return torch.where((there == 0) & (count == 0), 1, there)

    def _check_rows(self, index: Tensor, kl_rows: int) -> None:
        """``rows`` made from other labels, weights or kl_scale would leave tokens out in silence: an error, and where
        the host would have to wait for it, a NaN loss."""
        total = self.labels.shape[0]
        if index.dim() != 1 or index.dtype != torch.int64:
            raise TypeError(f"rows: expected [n] int64, got {_sizes(index)} {index.dtype}")
        _check_devices(self.labels, rows=index)
        on_host = _on_host(index)
        if on_host and index.numel():
            low, high = index.aminmax()
            if low < 0 or high >= total:
                raise ValueError(f"rows: expected positions in [0, {total}), got {int(low)} to {int(high)}")
            if index.unique().numel() != index.numel():
                raise ValueError("rows: expected each position once, got one twice")
        flaws = []
        for name, weight, there in (
            ("rows", self.ce_weight, index),
            ("kl_rows", self.kl_weight, index if kl_rows < 0 else index[:kl_rows]),
        ):
            if weight is None:
                continue
            seen = torch.zeros_like(self.labels).index_add_(0, there, torch.ones_like(there))
            wrong = (weight != 0) & (seen != 1)  # left out, or counted twice, which the host has refused already
            flaws.append(wrong)
            if on_host and wrong.any():
                raise ValueError(
                    f"{name} leave out position {int(wrong.nonzero()[0])}, which has a weight: make them with "
                    "live_rows from the same labels, weights, kl_scale and shift"
                )
        if not on_host:
            wrong = flaws[0] if len(flaws) == 1 else flaws[0] | flaws[1]
            self.ce_weight = self.ce_weight.masked_fill(wrong.any(), math.nan)

    def call(
        self,
        objective: Objective,
        options: RunOptions,
        *,
        bias: Tensor | None,
        reference: LabelReference | HeadReference | None = None,
    ) -> LossCall:
        """The op's arguments."""
        _check_bias("bias", bias, self.lm_head)
        _check_devices(self.hidden, bias=bias)
        _check_objective(objective)
        index, kl_rows = options.rows if isinstance(options.rows, tuple) else (options.rows, -1)
        if index is not None:
            self._check_rows(index, kl_rows if objective.full_kl or isinstance(reference, HeadReference) else -1)
        if options.chunk_bytes is not None and options.chunk_bytes <= 0:
            raise ValueError(f"chunk_bytes: expected a positive number, got {options.chunk_bytes}")
        _check_filter(options)
        known = reference if isinstance(reference, LabelReference) else None
        live = reference if isinstance(reference, HeadReference) else None
        return LossCall(
            hidden=self.hidden,
            lm_head=self.lm_head,
            bias=None if bias is None else bias.contiguous(),
            labels=self.labels,
            ce_weight=self.ce_weight,
            kl_weight=self.kl_weight,
            ref_logprobs=None if known is None else known.logprobs,
            ref_hidden=None if live is None else live.hidden,
            ref_lm_head=None if live is None else live.lm_head,
            ref_bias=None if live is None else live.bias,
            rows=index,
            kl_rows=kl_rows,
            objective=objective.encode(),
            compute_dtype=self.compute_dtype,
            backend=choose_backend(options.backend, self.hidden.device),
            chunk_bytes=options.chunk_bytes or 0,
            compact=options.compact,
            filter_eps=float(options.filter_eps or 0),
            group="" if options.group is None else options.group.group_name,
        )


def plain_weights(
    labels: Tensor, weights: Tensor | None, *, ignore_index: int, shift: bool, dtype: torch.dtype
) -> RowWeights:
    """Weights of the cross-entropy alone, all 1 where none are given."""
    counts = _counting(labels, ignore_index, shift)
    ce = counts.to(dtype) if weights is None else _row_weights(labels, weights, "weights", counts, shift, dtype)
    return RowWeights(ce, None, counts)


def shaping_weights(
    labels: Tensor,
    token_weights: Tensor,
    name: str,
    kl_scale: float,
    *,
    ignore_index: int,
    shift: bool,
    dtype: torch.dtype,
) -> RowWeights:
    """Weights of the cross-entropy and of the KL term, from one weight in [0, 1] per token."""
    counts = _counting(labels, ignore_index, shift)
    weight = _row_weights(labels, token_weights, name, counts, shift, dtype)
    weight = weight.masked_fill(weight > 1, math.nan)
    return RowWeights(weight, torch.where(counts, (1 - weight) * kl_scale, 0), counts)


def _counting(labels: Tensor, ignore_index: int, shift: bool) -> Tensor:
    return _shifted(labels.long(), shift, ignore_index).reshape(-1) != ignore_index


def _row_weights(labels: Tensor, given: Tensor, name: str, counts: Tensor, shift: bool, dtype: torch.dtype) -> Tensor:
    """[N]. A negative or infinite weight becomes NaN: where a check would make the host wait, the loss itself tells."""
    if given.shape != labels.shape:
        raise ValueError(f"{name}: expected the shape of labels, {_sizes(labels)}, got {_sizes(given)}")
    if not given.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {given.dtype}")
    if given.requires_grad:
        raise ValueError(f"{name}: expected a constant, got one that requires a gradient: pass {name}.detach()")
    weight = _shifted(given, shift, 0).reshape(-1).to(dtype)
    return torch.where(counts, weight.masked_fill((weight < 0) | weight.isinf(), math.nan), 0)


def _shifted(x: Tensor, shift: bool, fill: int) -> Tensor:
    """``x[..., 1:]`` with ``fill`` at the end: hidden states meet the token that follows them."""
    if shift and not x.dim():
        raise ValueError("shift=True needs a token axis, but labels is a single one")
    return F.pad(x[..., 1:], (0, 1), value=fill) if shift and x.shape[-1] else x


def choose_backend(backend: str, device: torch.device) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto":
        return "triton" if device.type == "cuda" else "torch"
    if backend == "triton" and device.type != "cuda":
        from fastdss.kernels.row_pass import interpreted

        if not interpreted():
            raise ValueError(f"backend='triton' needs a CUDA or ROCm device, but hidden is on {device}")
    return backend


def _checked_dtype(hidden: Tensor, lm_head: Tensor, labels: Tensor, **weights: Tensor | None) -> torch.dtype:
    """The dtype that sums are kept in, once the tensors fit each other."""
    _check_gathered(hidden=hidden, lm_head=lm_head)
    check_labels(labels)
    _check_shapes(hidden, lm_head, labels)
    _check_devices(hidden, lm_head=lm_head, labels=labels, **weights)
    return torch.float64 if compute_dtype(hidden, lm_head) == torch.float64 else torch.float32


def _on_host(tensor: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device or breaking a graph that is being traced."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _words(lm_head: Tensor, group: Any) -> int:
    return lm_head.shape[0] * (1 if group is None else group.size())


def _sizes(x: Tensor) -> list[int]:
    return list(x.shape)


def _check_gathered(**tensors: Tensor) -> None:
    """A sharded parameter has the wrong rows; loading torch.distributed.tensor just to look would be slow."""
    dtensor = sys.modules.get("torch.distributed.tensor")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a Tensor, got {type(tensor).__name__}")
        if dtensor is not None and isinstance(tensor, dtensor.DTensor):
            raise TypeError(
                f"{name} is a DTensor: gather it first, with {name}.full_tensor() or by calling the loss inside the "
                "forward of the FSDP unit that owns it; for a vocabulary split over ranks pass to_local() and group="
            )
        if hasattr(tensor, "ds_id") and tensor.numel() == 0:
            raise ValueError(
                f"{name} is an ungathered ZeRO-3 shard: wrap the call in deepspeed.zero.GatheredParameters([{name}])"
            )


def _check_shapes(hidden: Tensor, lm_head: Tensor, labels: Tensor) -> None:
    if hidden.dim() < 1 or hidden.shape[:-1] != labels.shape:
        raise ValueError(f"hidden: expected [..., D] with the shape of labels, {_sizes(labels)}, got {_sizes(hidden)}")
    if lm_head.dim() != 2 or lm_head.shape[1] != hidden.shape[-1]:
        raise ValueError(f"lm_head: expected [V, {hidden.shape[-1]}], got {_sizes(lm_head)}")
    if 0 in lm_head.shape:
        raise ValueError(f"lm_head: expected a weight that is not empty, got {_sizes(lm_head)}")


def check_labels(labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected integers, got {labels.dtype}")


def _check_devices(hidden: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}, hidden on {hidden.device}")


def _check_bias(name: str, bias: Tensor | None, lm_head: Tensor) -> None:
    if bias is not None and bias.shape != lm_head.shape[:1]:
        raise ValueError(f"{name}: expected [{lm_head.shape[0]}], got {_sizes(bias)}")
    if bias is not None and not bias.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {bias.dtype}")


def compute_dtype(hidden: Tensor, lm_head: Tensor, prefix: str = "") -> torch.dtype:
    for name, tensor in (("hidden", hidden), ("lm_head", lm_head)):
        if tensor.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(f"{prefix}{name}: expected float64, float32, bfloat16 or float16, got {tensor.dtype}")
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (hidden.dtype, lm_head.dtype):
        return torch.get_autocast_dtype(device)
    if hidden.dtype != lm_head.dtype:
        raise TypeError(f"{prefix}hidden is {hidden.dtype}, {prefix}lm_head {lm_head.dtype}: cast one or use autocast")
    return hidden.dtype


def _check_objective(o: Objective) -> None:
    if not 0 <= o.label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1), got {o.label_smoothing}")
    if not math.isfinite(o.z_loss) or o.z_loss < 0:
        raise ValueError(f"z_loss: expected a finite number >= 0, got {o.z_loss}")
    for name, scale in (("logit_scale", o.logit_scale), ("ref_logit_scale", o.ref_logit_scale)):
        if not math.isfinite(scale):
            raise ValueError(f"{name}: expected a finite number, got {scale}")
    for name, cap in (("softcap", o.softcap), ("ref_softcap", o.ref_softcap)):
        if cap is not None and not (math.isfinite(cap) and cap > 0):
            raise ValueError(f"{name}: expected None or a positive number, got {cap}")


def check_filter_eps(eps: float | None) -> None:
    if eps is not None and not 0 < eps < 1:
        raise ValueError(f"filter_eps: expected None or a number in (0, 1), got {eps}")


def _check_filter(options: RunOptions) -> None:
    check_filter_eps(options.filter_eps)
    if options.filter_eps is not None and not options.compact:
        raise ValueError("filter_eps counts columns on the host, which compact=False (CUDA graphs) rules out")


def check_reference(kl: str, ref_logprobs: Any, ref_hidden: Any, ref_lm_head: Any) -> None:
    if kl not in LABEL_KL + FULL_KL:
        raise ValueError(f"kl: expected one of {', '.join(KL)}, got {kl!r}")
    if (ref_logprobs is None) == (ref_hidden is None):
        raise ValueError("give the reference either as ref_logprobs or as ref_hidden with ref_lm_head")
    if ref_hidden is not None and ref_lm_head is None:
        raise ValueError("ref_hidden needs ref_lm_head (lm_head itself where the head is shared and frozen)")
    if ref_hidden is None and ref_lm_head is not None:
        raise ValueError("ref_lm_head is of no use without ref_hidden")
    if kl in FULL_KL and ref_hidden is None:
        raise ValueError(f"kl={kl!r} sums over the vocabulary: it needs ref_hidden and ref_lm_head, not ref_logprobs")


def check_kl_scale(kl_scale: float) -> None:
    if not math.isfinite(kl_scale) or kl_scale < 0:
        raise ValueError(f"kl_scale: expected a finite number >= 0, got {kl_scale}")


def check_num_items(num_items_in_batch: int | float | Tensor | None) -> None:
    """Positive and finite, as far as the host knows; 0 in a tensor is a step in which no label counts."""
    on_host = not isinstance(num_items_in_batch, Tensor) or _on_host(num_items_in_batch)
    if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.numel() != 1:
        raise ValueError(f"num_items_in_batch: expected one number, got {_sizes(num_items_in_batch)}")
    if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.requires_grad:
        raise ValueError(
            "num_items_in_batch: expected a constant, got one that requires a gradient: pass it through .detach()"
        )
    if num_items_in_batch is None or not on_host:
        return
    value = float(num_items_in_batch)
    if not (0 < value < math.inf or (value == 0 and isinstance(num_items_in_batch, Tensor))):
        raise ValueError(f"num_items_in_batch: expected a positive number, got {num_items_in_batch}")


def check_values(
    labels: Tensor, scores: Tensor | None, name: str, ignore_index: int, vocab_size: int | None, *, unit_interval: bool
) -> None:
    """Values that only the host can look at without waiting."""
    counts = labels != ignore_index
    too_high = labels >= vocab_size if vocab_size is not None else torch.zeros_like(counts)
    size = "V" if vocab_size is None else vocab_size
    _refuse_first(counts & ((labels < 0) | too_high), "labels", labels, f"a label in [0, {size}) or {ignore_index}")
    if scores is not None:
        valid = scores.isfinite() & (scores >= 0)
        valid &= (scores <= 1) if unit_interval else True
        _refuse_first(counts & ~valid, name, scores, "a number in [0, 1]" if unit_interval else "a finite number >= 0")


def _refuse_first(bad: Tensor, name: str, values: Tensor, rule: str) -> None:
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{name}[{', '.join(map(str, where))}]: expected {rule}, got {values[where].item()}")
