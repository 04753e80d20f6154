"""Turns what users pass into the arguments of the ops: checks, flattening, shifting, weights per row."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdss.errors import UserError, UserTypeError

from .call import LossCall
from .checks import (
    check_bias,
    check_devices,
    check_filter,
    check_gathered,
    check_number,
    check_objective,
    check_values,
    checked_dtype,
    choose_backend,
    compute_dtype,
    on_host,
    refuse_first,
    sizes,
    vocabulary_size,
)
from .objective import Objective


class LiveRows(NamedTuple):
    """What ``live_rows`` returns and ``rows=`` takes. A NamedTuple, so that accelerate and DataLoader can move it."""

    index: Tensor  # type: ignore[assignment]  # [n] int64 positions in the flat batch, those with a KL weight first
    kl_rows: int  # how many of them have a KL weight

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> LiveRows:
        return LiveRows(self.index.to(device, non_blocking=non_blocking), self.kl_rows)


class LabelReference(NamedTuple):
    """The reference's log-probabilities of the labels, flattened: all that the label forms of the KL need."""

    logprobs: Tensor  # [N]
    slope: Tensor | None = None  # [N, D] as in LossCall
    csft_beta: Tensor | None = None  # [N] likewise


class HeadReference(NamedTuple):
    """The reference's hidden states and head, flattened, from which its logits can be made."""

    hidden: Tensor  # [N, D']
    lm_head: Tensor  # [V, D']
    bias: Tensor | None  # [V]


class RunOptions(NamedTuple):
    """Options that say how to compute a loss, not which one. Only ``grad_tol`` changes the gradients."""

    rows: LiveRows | Tensor | None
    compact: bool
    backend: str
    chunk_bytes: int | None
    group: Any
    grad_tol: float | None = None
    token_stats: bool = False  # whether to compute each token's entropy and whether its label was the likeliest word


class RowWeights(NamedTuple):
    """Each row's label and weights, flattened; the weights are 0 where the label does not count."""

    labels: Tensor  # [N] int64
    counts: Tensor  # [N] bool: which labels count
    ce: Tensor  # [N] weights of the cross-entropy
    kl: Tensor | None  # [N] weights of the KL term; None: the loss has none


class Batch:
    """One checked batch, flattened to rows: hidden [N, D], labels and weights [N].

    ``weighted`` makes it for cross-entropy alone, ``shaped`` for dynamic safety shaping.
    """

    def __init__(
        self,
        hidden: Tensor,
        lm_head: Tensor,
        weights: RowWeights,
        *,
        shift: bool,
    ) -> None:
        self.shape, self.shift = hidden.shape[:-1], shift
        self.compute_dtype = compute_dtype(hidden, lm_head)
        self.labels, self.counts, self.ce_weight, self.kl_weight = weights
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
        """The batch of a cross-entropy whose weights are >= 0 (None: all 1), without a KL term."""
        dtype = checked_dtype(hidden, lm_head, labels, weights=weights)
        found = plain_weights(labels, weights, ignore_index=ignore_index, shift=shift, dtype=dtype)
        if on_host(labels):
            check_values(labels, weights, "weights", ignore_index, vocabulary_size(lm_head, group), unit_interval=False)
        return cls(hidden, lm_head, found, shift=shift)

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
        """The batch of dynamic safety shaping.

        A token's weight w in [0, 1] weighs its cross-entropy, and (1 - w) * kl_scale weighs its KL.
        """
        name = "token_weights"
        dtype = checked_dtype(hidden, lm_head, labels, token_weights=token_weights)
        found = shaping_weights(
            labels, token_weights, name, kl_scale, ignore_index=ignore_index, shift=shift, dtype=dtype
        )
        if on_host(labels):
            check_values(labels, token_weights, name, ignore_index, vocabulary_size(lm_head, group), unit_interval=True)
        return cls(hidden, lm_head, found, shift=shift)

    def reference_logprobs(self, ref_logprobs: Tensor) -> LabelReference:
        """The reference given by its log-probabilities of the labels, checked and flattened."""
        check_gathered(ref_logprobs=ref_logprobs)
        if ref_logprobs.shape != self.shape:
            raise UserError(
                f"ref_logprobs: expected the shape of labels, {list(self.shape)}, got {sizes(ref_logprobs)}"
            )
        if not ref_logprobs.is_floating_point():
            raise UserTypeError(f"ref_logprobs: expected a floating dtype, got {ref_logprobs.dtype}")
        check_devices(self.hidden, ref_logprobs=ref_logprobs)
        logprobs = shifted(ref_logprobs.detach(), self.shift, 0).reshape(-1)
        return LabelReference(logprobs.to(self.ce_weight.dtype).contiguous())

    def betas(self, given: float | Tensor) -> Tensor:
        """``csft_beta`` as a tensor [N], checked to be positive and finite.

        On a device the host would have to wait to raise an error; there a bad number becomes NaN instead.
        """
        if not isinstance(given, Tensor):
            check_number("csft_beta", given)
            given = torch.full(self.shape, float(given), dtype=self.ce_weight.dtype, device=self.hidden.device)
        if given.shape != self.shape or not given.is_floating_point():
            raise UserError(
                f"csft_beta: expected a number or floats of the shape of labels, {list(self.shape)}, got {sizes(given)}"
            )
        check_devices(self.hidden, csft_beta=given)
        if given.requires_grad:
            raise UserError("csft_beta: expected a constant, got one that requires a gradient: pass csft_beta.detach()")
        beta = shifted(given.detach(), self.shift, 1).reshape(-1).to(self.ce_weight.dtype)
        bad = self.counts & ~((beta > 0) & (beta < math.inf))
        if on_host(beta):
            refuse_first(bad, "csft_beta", beta, "a positive, finite number")
        return beta.masked_fill(bad, math.nan).contiguous()

    def reference_head(self, ref_hidden: Tensor, ref_lm_head: Tensor, ref_bias: Tensor | None) -> HeadReference:
        """The reference given by its hidden states and head, checked and flattened."""
        check_gathered(ref_hidden=ref_hidden, ref_lm_head=ref_lm_head)
        if ref_hidden.shape[:-1] != self.shape:
            raise UserError(f"ref_hidden: expected {[*self.shape, 'D']} like labels, got {sizes(ref_hidden)}")
        if ref_lm_head.dim() != 2 or ref_lm_head.shape[1] != ref_hidden.shape[-1]:
            raise UserError(f"ref_lm_head: expected [V, {ref_hidden.shape[-1]}], got {sizes(ref_lm_head)}")
        if ref_lm_head.shape[0] != self.lm_head.shape[0]:
            raise UserError(
                f"ref_lm_head has a vocabulary of {ref_lm_head.shape[0]}, lm_head one of {self.lm_head.shape[0]}"
            )
        check_bias("ref_bias", ref_bias, self.lm_head)
        check_devices(self.hidden, ref_hidden=ref_hidden, ref_lm_head=ref_lm_head, ref_bias=ref_bias)
        dtype = compute_dtype(ref_hidden, ref_lm_head, "ref_")
        if (dtype == torch.float64) != (self.compute_dtype == torch.float64):
            raise UserTypeError(
                f"reference and policy must both be float64 or neither, got {dtype}, {self.compute_dtype}"
            )
        return HeadReference(
            ref_hidden.detach().reshape(-1, ref_hidden.shape[-1]).to(dtype),
            ref_lm_head.detach().to(dtype),
            None if ref_bias is None else ref_bias.detach().contiguous(),
        )

    def check_main_grad(self, main_grad: Tensor) -> None:
        """Check that backward can add the head's gradient to ``main_grad``; ValueError or TypeError if not."""
        check_gathered(main_grad=main_grad)
        if main_grad.shape != self.lm_head.shape:
            raise UserError(f"main_grad: expected {sizes(self.lm_head)} like lm_head, got {sizes(main_grad)}")
        if main_grad.dtype != self.ce_weight.dtype:
            raise UserTypeError(f"main_grad: expected {self.ce_weight.dtype}, got {main_grad.dtype}")
        check_devices(self.hidden, main_grad=main_grad)
        if main_grad.requires_grad:
            raise UserError("main_grad requires a gradient, but it is a buffer: make it with torch.zeros")
        if torch.is_grad_enabled() and not self.lm_head.requires_grad:
            raise UserError("main_grad was given, but lm_head is frozen: leave it out")

    def items(self, num_items_in_batch: int | float | Tensor | None) -> int | float | Tensor:
        """The divisor of a mean. In a step without a label that counts it is 1, so that the mean is 0 and not NaN."""
        if num_items_in_batch is not None and not isinstance(num_items_in_batch, Tensor):
            return num_items_in_batch
        count = self.counts.sum()
        if num_items_in_batch is None:
            return max(1, int(count)) if on_host(count) else count.clamp(min=1)
        there = num_items_in_batch.to(count.device, self.ce_weight.dtype, non_blocking=True).reshape(())
        if on_host(there) and there == 0 and count:
            raise UserError(f"num_items_in_batch: expected the number of labels that count, got 0 of {int(count)}")
        return torch.where((there == 0) & (count == 0), 1, there)

    def _check_rows(self, index: Tensor, kl_rows: int) -> None:
        """Check that ``rows`` contain every row with a weight, once.

        If they were made from other labels, weights or kl_scale, tokens would be left out in silence. That is an error;
        on a device, where the host would have to wait to raise it, the loss becomes NaN instead.
        """
        check_gathered(rows=index)
        if index.dim() != 1 or index.dtype != torch.int64:
            raise UserTypeError(f"rows: expected [n] int64, got {sizes(index)} {index.dtype}")
        check_devices(self.labels, rows=index)
        if on_host(index):
            return self._refuse_rows(index, kl_rows)
        if self.kl_weight is None:
            wrong = _not_once(self.ce_weight, index)
        elif kl_rows < 0:  # it is not known which rows should have a KL weight
            wrong = _not_once(torch.logical_or(self.ce_weight, self.kl_weight), index)
        else:
            wrong = _not_once(self.ce_weight, index) | _not_once(self.kl_weight, index[:kl_rows])
        self.ce_weight = self.ce_weight.masked_fill(wrong.any(), math.nan)
        return None

    def _refuse_rows(self, index: Tensor, kl_rows: int) -> None:
        """The check of ``_check_rows`` where the host can read the values: raises ``UserError``."""
        total, count = self.labels.shape[0], index.shape[0]
        if count:
            low, high = index.aminmax()
            if low < 0 or high >= total:
                raise UserError(f"rows: expected positions in [0, {total}), got {int(low)} to {int(high)}")
        seen = index.new_zeros(total, dtype=torch.bool).index_fill_(0, index, True)
        if int(seen.sum()) != count:
            raise UserError("rows: expected each position once, got one twice")
        of_kl = seen
        if 0 <= kl_rows < count:
            of_kl = torch.zeros_like(seen).index_fill_(0, index[:kl_rows], True)
        for name, weight, there in (("rows", self.ce_weight, seen), ("kl_rows", self.kl_weight, of_kl)):
            if weight is not None and (left_out := weight.masked_fill(there, 0)).any():
                raise UserError(
                    f"{name} leave out position {int(left_out.nonzero()[0])}, which has a weight: make them with "
                    "live_rows from the same labels, weights, kl_scale and shift"
                )

    def call(
        self,
        objective: Objective,
        options: RunOptions,
        *,
        bias: Tensor | None,
        reference: LabelReference | HeadReference | None = None,
    ) -> LossCall:
        """The arguments of the ops."""
        check_bias("bias", bias, self.lm_head)
        check_devices(self.hidden, bias=bias)
        check_objective(objective)
        index, kl_rows = options.rows if isinstance(options.rows, tuple) else (options.rows, -1)
        if index is not None:
            self._check_rows(index, kl_rows if objective.full_kl or isinstance(reference, HeadReference) else -1)
        if options.chunk_bytes is not None:
            check_number("chunk_bytes", options.chunk_bytes, numbers.Integral)
            if options.chunk_bytes <= 0:
                raise UserError(f"chunk_bytes: expected a positive number, got {options.chunk_bytes}")
        check_filter(options.grad_tol, options.compact)
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
            csft_beta=None if known is None else known.csft_beta,
            ref_slope=None if known is None else known.slope,
            ref_hidden=None if live is None else live.hidden,
            ref_lm_head=None if live is None else live.lm_head,
            ref_bias=None if live is None else live.bias,
            rows=index,
            kl_rows=kl_rows,
            objective=objective.encode(),
            compute_dtype=self.compute_dtype,
            backend=choose_backend(options.backend, self.hidden.device),
            product=options.backend if options.backend in ("fused", "auto") else "vendor",
            chunk_bytes=options.chunk_bytes or 0,
            compact=options.compact,
            grad_tol=float(options.grad_tol or 0),
            token_stats=options.token_stats,
            group="" if options.group is None else options.group.group_name,
        )


def _not_once(weighted: Tensor, index: Tensor) -> Tensor:
    """[N] bool: rows that are not 0 in ``weighted`` [N] but do not occur exactly once in ``index``."""
    seen = index.new_zeros(weighted.shape).index_add_(0, index, torch.ones_like(index))
    return torch.logical_and(weighted, seen != 1)


def plain_weights(
    labels: Tensor, weights: Tensor | None, *, ignore_index: int, shift: bool, dtype: torch.dtype
) -> RowWeights:
    """Weights of the cross-entropy, and none of a KL; ``weights`` None: all 1."""
    rows, counts = _labels_of_rows(labels, ignore_index, shift)
    ce = counts.to(dtype) if weights is None else _row_weights(labels, weights, "weights", counts, shift, dtype)
    return RowWeights(rows, counts, ce, None)


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
    rows, counts = _labels_of_rows(labels, ignore_index, shift)
    weight = _row_weights(labels, token_weights, name, counts, shift, dtype)
    if not on_host(labels):  # on the host check_values raises an error for these
        weight = weight.masked_fill(weight > 1, math.nan)
    return RowWeights(rows, counts, weight, torch.where(counts, (1 - weight) * kl_scale, 0))


def _labels_of_rows(labels: Tensor, ignore_index: int, shift: bool) -> tuple[Tensor, Tensor]:
    """``([N] labels, [N] which of them count)``"""
    check_number("ignore_index", ignore_index, numbers.Integral)
    rows = shifted(labels.long(), shift, ignore_index).reshape(-1).contiguous()
    return rows, rows != ignore_index


def _row_weights(labels: Tensor, given: Tensor, name: str, counts: Tensor, shift: bool, dtype: torch.dtype) -> Tensor:
    """[N] the given weights, checked, and 0 where ``counts`` is False.

    On a device the host would have to wait to raise an error; there a negative or infinite weight becomes NaN, and so
    does the loss.
    """
    if given.shape != labels.shape:
        raise UserError(f"{name}: expected the shape of labels, {sizes(labels)}, got {sizes(given)}")
    if not given.is_floating_point():
        raise UserTypeError(f"{name}: expected a floating dtype, got {given.dtype}")
    if given.requires_grad:
        raise UserError(f"{name}: expected a constant, got one that requires a gradient: pass {name}.detach()")
    weight = shifted(given, shift, 0).reshape(-1).to(dtype)
    if not on_host(labels):
        weight = weight.masked_fill(weight.clamp(0, torch.finfo(weight.dtype).max) != weight, math.nan)
    return torch.where(counts, weight, 0)


def shifted(x: Tensor, shift: bool, fill: int, dim: int = -1) -> Tensor:
    """With ``shift``, ``x[..., 1:]`` along ``dim`` and ``fill`` at the end; else ``x``.

    The shift pairs each hidden state with the token that follows it.
    """
    if shift and x.dim() < -dim:
        raise UserError("shift=True needs a token axis, but labels is a single one")
    if not shift or not x.shape[dim]:
        return x
    return F.pad(x.narrow(dim, 1, x.shape[dim] - 1), (*(0, 0) * (-1 - dim), 0, 1), value=fill)
