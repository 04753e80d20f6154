"""Token-weighted cross-entropy and KL of a language-model head, without holding the logits of all tokens at once."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from fastdss.errors import UserError

from .checks import check_constrained, check_kl_scale, check_reference
from .host_rows import live_rows
from .inputs import Batch, HeadReference, LabelReference, LiveRows, RunOptions
from .objective import KL, LABEL_KL, KLName, Objective
from .reduce import entropy_and_correct, evaluate_reduced, token_losses
from .reference import logprobs_of_reference
from .tangent import ForwardReference, check_one_head, check_softcap, forward_reference, refuse_another_head, tangent_of

__all__ = [
    "KL",
    "DSSLossOutput",
    "ForwardReference",
    "LiveRows",
    "WeightedCEOutput",
    "dss_loss",
    "forward_reference",
    "live_rows",
    "token_logprobs",
    "weighted_ce",
    "weighted_ce_stats",
]

Reduction = Literal["mean", "sum", "none"]
Backend = Literal["auto", "torch", "triton", "fused"]


class WeightedCEOutput(NamedTuple):
    """``loss`` carries the gradient; the other three are detached, and 0 at tokens without weight."""

    loss: Tensor  # [] or, with reduction="none", [...]
    token_ce: Tensor  # [...] cross-entropy per token, without weights
    token_entropy: Tensor  # [...] entropy of the model's distribution over the vocabulary, in nats
    token_correct: Tensor  # [...] bool: whether the label is likelier than every other word


class DSSLossOutput(NamedTuple):
    """``loss = ce + kl`` carries the gradient; the others are detached."""

    loss: Tensor  # [] or, with reduction="none", [...]
    ce: Tensor  # the cross-entropy's part of the loss, weights included
    kl: Tensor  # the KL's part of the loss, weights included
    token_ce: Tensor  # [...] cross-entropy per token, without weights; 0 at tokens without weight
    token_kl: Tensor  # [...] KL per token, without weights; 0 where (1 - token_weights) * kl_scale = 0
    token_entropy: Tensor | None = None  # with token_stats=True as in WeightedCEOutput, else None
    token_correct: Tensor | None = None  # with token_stats=True as in WeightedCEOutput, else None


def weighted_ce(
    hidden: Tensor,
    lm_head: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items_in_batch: int | Tensor | None = None,
    ignore_index: int = -100,
    shift: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    dft: bool = False,
    rows: LiveRows | Tensor | None = None,
    compact: bool = True,
    backend: Backend = "auto",
    chunk_bytes: int | None = None,
    grad_tol: float | None = None,
    group: Any = None,
    main_grad: Tensor | None = None,
) -> Tensor:
    """Compute the weighted cross-entropy of a linear head.

    ```python
    logits = F.linear(hidden, lm_head, bias).float() * logit_scale
    logits = softcap * torch.tanh(logits / softcap)                      # if softcap
    token  = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    token  = weights * (token + z_loss * logits.logsumexp(-1) ** 2)
    loss   = token.sum() / (num_items_in_batch or (labels != ignore_index).sum())  # reduction="mean"
    ```

    hidden, lm_head and bias get gradients, but no second derivatives; weights are constants. Rows with an ignored label
    or zero weight are not computed, and a NaN there has no effect. Labels out of range and weights that are negative or
    not finite are errors on a CPU; on a GPU, where a check would make the host wait, they make the loss NaN instead.

    Args:
        hidden: [..., D] fp64, fp32, bf16 or fp16.
        lm_head: [V, D] of the same dtype, unless autocast is on.
        labels: [...] integers.
        weights: [...] float, >= 0; None: all 1.
        bias: [V] of the head; None: none.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        num_items_in_batch: the divisor of a mean; None: the number of labels that count.
        ignore_index: the label that does not count.
        shift: pair hidden[t] with labels[t + 1] and weights[t + 1] along the last token axis.
        logit_scale: the factor of the logits.
        softcap: the bound of the logits, applied after their scale; None: none.
        label_smoothing: as in ``torch.nn.functional.cross_entropy``.
        z_loss: the factor of the squared log-partition.
        dft: weigh each token by its own probability, held constant: ``weights * exp(-ce).detach() * ce`` (dynamic
            fine-tuning, arXiv 2508.05629); not with label_smoothing or z_loss.
        rows: from ``live_rows``; the host then need not wait for a GPU to count the rows that have a weight.
        compact: False computes all rows, whatever their weights: shapes are then fixed, as CUDA graphs need them.
        backend: ``"auto"``, ``"torch"``, ``"triton"``, or ``"fused"``: Triton with a product of hidden and lm_head that
            writes exponentials instead of logits, where the loss's form and dtype allow it (docs/loss.md).
        chunk_bytes: how much memory logits may take; None: the device's default.
        grad_tol: a share of the norm of dZ, the gradient for a chunk's logits, that may be missing from the gradients
            of hidden and lm_head. The columns (words) of least energy are left out of their products, and a matrix of
            rank one with the same row sums takes their place; the Frobenius norm of what is then missing is measured.
            Two of the three GEMMs read fewer words: on English text ``2**-9`` leaves out about as many as
            cut-cross-entropy's threshold. The loss stays exact; the host waits for the device in every
            chunk. None: exact gradients.
        group: the process group over which lm_head's rows are split evenly, in rank order; labels stay global.
        main_grad: [V, D] fp32 (fp64 for fp64), such as Megatron-LM's ``lm_head.main_grad``. Backward adds lm_head's
            gradient to it, times any upstream factor, and lm_head's own gradient stays None, so that micro-batches add
            up in full precision. Where exponentials are not kept (docs/loss.md), the gradient waits for that factor in
            a [V, D] tensor, or with ``reduction="none"`` the logits are computed again in backward: four GEMMs, not
            three.

    Returns:
        Tensor: fp32 (fp64 for fp64), a scalar, or [...] with ``reduction="none"``, 0 at ignored labels.

    Raises:
        ValueError: for shapes, values and options that do not fit.
        TypeError: for dtypes that do not.
    """
    spec = Objective("none", label_smoothing, z_loss, logit_scale, softcap, dft=dft)
    batch = Batch.weighted(hidden, lm_head, labels, weights, ignore_index=ignore_index, shift=shift, group=group)
    call = batch.call(spec, RunOptions(rows, compact, backend, chunk_bytes, group, grad_tol), bias=bias)
    return evaluate_reduced(call, batch, reduction, num_items_in_batch, main_grad).loss


def weighted_ce_stats(
    hidden: Tensor,
    lm_head: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items_in_batch: int | Tensor | None = None,
    ignore_index: int = -100,
    shift: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    dft: bool = False,
    rows: LiveRows | Tensor | None = None,
    compact: bool = True,
    backend: Backend = "auto",
    chunk_bytes: int | None = None,
    grad_tol: float | None = None,
    group: Any = None,
    main_grad: Tensor | None = None,
) -> WeightedCEOutput:
    """Compute ``weighted_ce`` and, in the same pass over the logits, each token's entropy and correctness.

    ```python
    loss    = weighted_ce(...)
    log_p   = torch.log_softmax(logits, -1)                              # logits as in weighted_ce
    entropy = -(log_p.exp() * log_p).sum(-1)
    correct = log_p.argmax(-1) == labels                                 # False where another word is as likely
    ```

    Takes and raises what ``weighted_ce`` does. Entropies are in nats; if ``group`` splits the vocabulary, they
    are those of the whole vocabulary. They need no further GEMM, and the host does not wait for them.

    Returns:
        WeightedCEOutput: the loss with its gradient, and three values per token.
    """
    spec = Objective("none", label_smoothing, z_loss, logit_scale, softcap, dft=dft)
    batch = Batch.weighted(hidden, lm_head, labels, weights, ignore_index=ignore_index, shift=shift, group=group)
    options = RunOptions(rows, compact, backend, chunk_bytes, group, grad_tol, token_stats=True)
    run = evaluate_reduced(batch.call(spec, options, bias=bias), batch, reduction, num_items_in_batch, main_grad)
    return WeightedCEOutput(run.loss, run.token_ce.view(batch.shape), *entropy_and_correct(run, batch))


def dss_loss(
    hidden: Tensor,
    lm_head: Tensor,
    labels: Tensor,
    token_weights: Tensor,
    *,
    ref_logprobs: Tensor | None = None,
    ref_hidden: Tensor | None = None,
    ref_lm_head: Tensor | None = None,
    ref_slope: Tensor | None = None,
    ref_offset: Tensor | None = None,
    kl: KLName = "k2",
    kl_scale: float = 0.5,
    csft_beta: float | Tensor | None = None,
    bias: Tensor | None = None,
    ref_bias: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items_in_batch: int | Tensor | None = None,
    ignore_index: int = -100,
    shift: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ref_logit_scale: float | None = None,
    ref_softcap: float | Literal["same"] | None = "same",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    dft: bool = False,
    rows: LiveRows | Tensor | None = None,
    compact: bool = True,
    backend: Backend = "auto",
    chunk_bytes: int | None = None,
    grad_tol: float | None = None,
    token_stats: bool = False,
    group: Any = None,
    main_grad: Tensor | None = None,
) -> DSSLossOutput:
    """Compute the loss of dynamic safety shaping: cross-entropy and KL, mixed by a weight for each token.

    ```python
    token_ce = ...                                       # as in weighted_ce
    logp     = log_softmax(logits)[labels]
    d        = logp - ref_logprobs
    token_kl = {"k1": d, "k2": d**2 / 2, "k3": exp(-d) - 1 + d,
                "reverse": KL(p || p_ref), "forward": KL(p_ref || p)}[kl]
    token    = token_weights * token_ce + (1 - token_weights) * kl_scale * token_kl
    loss     = token.sum() / (num_items_in_batch or (labels != ignore_index).sum())   # reduction="mean"
    ```

    The reference is given in one of three ways: ref_logprobs (for k1, k2, k3); ref_hidden with ref_lm_head (for any
    form); or ref_slope with ref_offset, which ``forward_reference`` makes once. The last is for the forward form with a
    head that is shared and frozen, and gives the full KL at the price of cross-entropy. Logits of the reference are
    computed only at rows with (1 - token_weights) * kl_scale > 0. hidden, lm_head and bias get gradients; token_weights
    and all tensors of the reference are constants. Sources: Peng et al., https://arxiv.org/abs/2505.17196; k1 to k3:
    http://joschu.net/blog/kl-approx.html.

    Args:
        hidden: [..., D] as in ``weighted_ce``.
        lm_head: [V, D] likewise.
        labels: [...] likewise.
        token_weights: [...] float in [0, 1], the STAR score of each token's chunk.
        ref_logprobs: [...] the reference's log-probabilities of the labels.
        ref_hidden: [..., D'] the reference's last hidden states.
        ref_lm_head: [V, D'] its head; lm_head itself if the head is shared and frozen.
        ref_slope: [..., D] from ``forward_reference``.
        ref_offset: [...] likewise.
        kl: which form of the KL.
        kl_scale: the factor of the KL term.
        csft_beta: a positive number or [...]: constrained fine-tuning (arXiv 2406.05946). The first term becomes
            ``token_weights * -(2 / csft_beta) * logsigmoid(csft_beta * d)``. Its gradient is bounded, and fades once
            the label is likelier than under the reference. The reference is then needed at every label that has a
            weight. Not with a full KL.
        bias: [V] as in ``weighted_ce``, like all options below that are not explained here.
        ref_bias: [V] the bias of ref_lm_head; None: none. Like the reference's scale and softcap it is read only with
            ref_hidden: stored values have them in them.
        reduction: as in ``weighted_ce``.
        num_items_in_batch: likewise.
        ignore_index: likewise.
        shift: likewise; ref_logprobs, ref_slope, ref_offset and csft_beta are shifted with the labels.
        logit_scale: as in ``weighted_ce``, and of the reference's logits too.
        softcap: likewise.
        ref_logit_scale: the reference's logit scale, if it is another one.
        ref_softcap: the reference's softcap, if it is another one; None: none.
        label_smoothing: as in ``weighted_ce``.
        z_loss: likewise.
        dft: likewise, for the cross-entropy term.
        rows: likewise.
        compact: likewise.
        backend: likewise.
        chunk_bytes: likewise.
        grad_tol: likewise.
        token_stats: fill token_entropy and token_correct too, see ``weighted_ce_stats``.
        group: as in ``weighted_ce``.
        main_grad: likewise.

    Returns:
        DSSLossOutput: the loss with its gradient, its two parts, and values per token.

    Raises:
        ValueError: as ``weighted_ce``, and for a reference that does not fit ``kl``.
        TypeError: as ``weighted_ce``.
    """
    check_reference(kl, ref_logprobs, ref_hidden, ref_lm_head, ref_slope, ref_offset)
    check_kl_scale(kl_scale)
    if ref_slope is not None:
        check_one_head(lm_head, bias)
        check_softcap(softcap)
        if ref_logit_scale not in (None, logit_scale) or ref_softcap not in ("same", None):
            raise UserError("ref_logit_scale and ref_softcap: expected none, for ref_slope holds the reference's own")
    scale = logit_scale if ref_logit_scale is None else ref_logit_scale
    cap = softcap if ref_softcap == "same" else ref_softcap
    form = kl if ref_slope is None else KL.K1  # tangent.py says why k1 with a negated weight is the forward KL
    spec = Objective(form, label_smoothing, z_loss, logit_scale, softcap, scale, cap, dft)
    placed: dict[str, Any] = {"ignore_index": ignore_index, "shift": shift, "group": group}
    batch = Batch.shaped(hidden, lm_head, labels, token_weights, kl_scale, **placed)
    check_constrained(csft_beta, kl, spec, batch.compute_dtype)
    options = RunOptions(rows, compact, backend, chunk_bytes, group, grad_tol, token_stats)
    reference: LabelReference | HeadReference
    if ref_slope is not None:
        assert batch.kl_weight is not None
        reference = tangent_of(batch, ref_slope, ref_offset)
        batch.kl_weight = -batch.kl_weight
    elif ref_logprobs is not None:
        reference = batch.reference_logprobs(ref_logprobs)
    else:
        assert ref_hidden is not None
        assert ref_lm_head is not None
        reference = batch.reference_head(ref_hidden, ref_lm_head, ref_bias)
        if kl in LABEL_KL:
            live = batch.call(spec, options, bias=None, reference=reference)
            reference = LabelReference(logprobs_of_reference(live, at_every_row=csft_beta is not None))
    if csft_beta is not None:
        assert isinstance(reference, LabelReference)
        reference = reference._replace(csft_beta=batch.betas(csft_beta))
    call = batch.call(spec, options, bias=bias, reference=reference)
    run = evaluate_reduced(call, batch, reduction, num_items_in_batch, main_grad)
    assert run.ce is not None
    assert run.kl is not None
    loss, token_kl = run.loss, run.token_kl
    if ref_slope is not None:
        assert isinstance(reference, LabelReference)
        token_kl = -token_kl
        loss = refuse_another_head(loss, run.token_ce, token_kl, reference)
    stats = entropy_and_correct(run, batch) if token_stats else ()
    return DSSLossOutput(loss, run.ce, run.kl, run.token_ce.view(batch.shape), token_kl.view(batch.shape), *stats)


def token_logprobs(
    hidden: Tensor,
    lm_head: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    shift: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    rows: LiveRows | Tensor | None = None,
    compact: bool = True,
    backend: Backend = "auto",
    chunk_bytes: int | None = None,
    group: Any = None,
) -> Tensor:
    """Compute the log-probability of each label.

    ```python
    torch.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0]      # logits as in weighted_ce
    ```

    hidden, lm_head and bias get gradients. Under ``torch.no_grad()``, as for a reference, it takes one GEMM. All
    arguments are as in ``weighted_ce``.

    Args:
        hidden: [..., D].
        lm_head: [V, D].
        labels: [...] integers.
        bias: [V].
        ignore_index: the label that does not count.
        shift: return each label's value at the position of the hidden state that predicts it, one before the label.
        logit_scale: the factor of the logits.
        softcap: the bound of the logits.
        rows: from ``live_rows``.
        compact: leave out rows whose label does not count.
        backend: which engine computes it.
        chunk_bytes: how much memory logits may take.
        group: the process group over which the vocabulary is split.

    Returns:
        Tensor: [...] fp32 (fp64 for fp64), 0 at ignored labels.

    Raises:
        ValueError: as ``weighted_ce``.
        TypeError: as ``weighted_ce``.
    """
    batch = Batch.weighted(hidden, lm_head, labels, None, ignore_index=ignore_index, shift=shift, group=group)
    batch.ce_weight = -batch.ce_weight
    spec = Objective("none", 0.0, 0.0, logit_scale, softcap)
    call = batch.call(spec, RunOptions(rows, compact, backend, chunk_bytes, group), bias=bias)
    return token_losses(call).view(batch.shape)
