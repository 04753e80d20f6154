"""The chunk driver as torch.library ops, each of which is one node for torch.compile: schemas, fakes, autograd.

``summed_loss`` makes the gradients in its forward, where the weights are known, and only scales them in backward.
``token_loss`` returns one loss per token. The upstream gradient, one number per token, is not known before backward, so
backward computes the logits again.
"""

from __future__ import annotations

from typing import Any, get_type_hints

import torch
from torch import Tensor

from fastdss.upstream.torch import graph_is_kept

from .call import LossCall, LossResult
from .chunked import run_chunks
from .kept import Evaluated, is_one, refuse_double_backward
from .objective import first_part, scaled_weight
from .rows import row_inputs

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
    torch.dtype: "ScalarType",
}
_KINDS = get_type_hints(LossCall)
_INPUTS = ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in _KINDS.items())
_TENSORS = sum(_SCHEMA_TYPES[kind].startswith("Tensor") for kind in _KINDS.values())  # tensors come first
_SCALED_ROWS = 512  # rows that a CPU scales at a time: few enough that the product is still in cache when it is rounded
_NO_GRADIENTS = (None,) * (len(LossCall._fields) - 3)  # for all arguments but hidden, lm_head and bias


def _gradients(result: LossResult, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, lm_head and bias, as an op returns them."""
    d_hidden, d_head, d_bias = (_or_empty(t, like) for t in (result.d_hidden, result.d_head, result.d_bias))
    return d_hidden, d_head, d_bias


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    """``tensor``, or an empty tensor for None, which an op cannot return."""
    return like.new_empty(0) if tensor is None else tensor


def _fake_tokens(call: LossCall) -> tuple[Tensor, ...]:
    """token_ce, token_kl and token_stats for tracing: the right shapes and dtypes, no values."""
    shapes = [call.labels.shape] * 2 + [(2, *call.labels.shape) if call.token_stats else (0,)]
    return tuple(call.hidden.new_empty(shape, dtype=call.accumulate) for shape in shapes)


def _weighted(call: LossCall, token_ce: Tensor, token_kl: Tensor) -> Tensor:
    """[N] the loss of each token, with its weights."""
    loss = _first_part(call, token_ce)
    return loss if call.kl_weight is None else loss + scaled_weight(call.kl_weight, token_kl)


def _first_part(call: LossCall, token_ce: Tensor) -> Tensor:
    return first_part(token_ce, row_inputs(call), call.dft)


def evaluate(call: LossCall, needs: list[bool], *, summed: bool, main_grad: Tensor | None) -> Evaluated:
    """The loss, computed by the ops of this file; arguments as in :func:`fastdss.loss.kept.evaluate`."""
    if main_grad is not None and not summed:
        found = MainGradLoss.apply(main_grad, *call)  # type: ignore[no-untyped-call]
    elif main_grad is not None:
        found = MainGradSum.apply(main_grad, needs, *call)  # type: ignore[no-untyped-call]
    else:
        found = summed_loss(*call, needs) if summed else token_loss(*call)
    loss, token_ce, token_kl, token_stats = found[:4]
    token_stats = token_stats if call.token_stats else None
    if call.kl_weight is None:
        return Evaluated(loss, None, None, token_ce, token_kl, token_stats)
    ce, kl = _first_part(call, token_ce), scaled_weight(call.kl_weight, token_kl)
    if summed:
        ce, kl = ce.sum(), kl.sum()
    return Evaluated(loss, ce, kl, token_ce, token_kl, token_stats)


@torch.library.custom_op(
    "fastdss::summed_loss",
    mutates_args=(),
    schema=f"({_INPUTS}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def summed_loss(*args: Any) -> tuple[Tensor, ...]:
    """(sum of the token losses, token_ce, token_kl, token_stats, and the sum's gradients for hidden, lm_head, bias)"""
    call, needs = LossCall(*args[:-1]), args[-1]
    result = run_chunks(call, hidden_grad=needs[0], head_grad=needs[1], bias_grad=needs[2])
    total = _weighted(call, result.token_ce, result.token_kl).sum()
    token_stats = _or_empty(result.token_stats, total)
    return total, result.token_ce, result.token_kl, token_stats, *_gradients(result, total)


@summed_loss.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    call, needs = LossCall(*args[:-1]), args[-1]
    dtype = call.accumulate
    new = call.hidden.new_empty
    shapes = (call.hidden.shape, call.lm_head.shape, call.lm_head.shape[:1])
    gradients = (new(shape if need else (0,), dtype=dtype) for shape, need in zip(shapes, needs, strict=True))
    return new((), dtype=dtype), *_fake_tokens(call), *gradients


def _save_summed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call = LossCall(*inputs[:-1])
    ctx.save_for_backward(*output[4:])
    ctx.dtypes = tuple(t.dtype for t in call[:3] if t is not None)
    ctx.needs, ctx.backend = inputs[-1], call.backend
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _summed_backward(ctx: Any, grad_total: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    refuse_double_backward()
    found = (None, None, None) if grad_total is None else _times(ctx, ctx.saved_tensors, grad_total)
    return *found, *_NO_GRADIENTS, None


def _times(ctx: Any, gradients: tuple[Tensor, ...], factor: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, times ``factor``, in the dtypes of their tensors."""
    found: list[Tensor | None] = [None] * 3
    for i, gradient in enumerate(gradients):
        if ctx.needs[i]:
            same = gradient.dtype == ctx.dtypes[i] and is_one(factor)
            # A gradient that the next backward needs as well must not be handed out: whoever gets it may write to it.
            found[i] = (
                gradient if same and not graph_is_kept() else scaled(gradient, factor, ctx.dtypes[i], ctx.backend)
            )
    return tuple(found)


summed_loss.register_autograd(_summed_backward, setup_context=_save_summed)


@torch.library.custom_op("fastdss::scaled", mutates_args=())
def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    """``(gradient * factor).to(dtype)``, rounded once and without a full-precision temporary."""
    if backend == "triton" and gradient.is_cuda:
        from fastdss.kernels.scale import launch_scale_fwd

        rounded: Tensor = launch_scale_fwd(gradient, factor, dtype)
        return rounded
    out = torch.empty_like(gradient, dtype=dtype)
    if gradient.device.type != "cpu" or gradient.dtype == dtype:
        return torch.mul(gradient, factor, out=out)
    for part, rows in zip(out.split(_SCALED_ROWS), gradient.split(_SCALED_ROWS), strict=True):
        part.copy_(rows * factor)  # torch.mul into another dtype would make a full-precision copy of the whole gradient
    return out


@scaled.register_fake
def _(gradient: Tensor, factor: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    return torch.empty_like(gradient, dtype=dtype)


@torch.library.custom_op(
    "fastdss::token_loss", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def token_loss(*args: Any) -> tuple[Tensor, ...]:
    """([N] token losses, token_ce, token_kl, token_stats)"""
    call = LossCall(*args)
    result = run_chunks(call, hidden_grad=False, head_grad=False, bias_grad=False)
    loss = _weighted(call, result.token_ce, result.token_kl)
    return loss, result.token_ce, result.token_kl, _or_empty(result.token_stats, loss)


@token_loss.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    call = LossCall(*args)
    return call.hidden.new_empty(call.labels.shape, dtype=call.accumulate), *_fake_tokens(call)


def _upstream(call: LossCall, grad: Tensor) -> LossCall:
    """The call with its weights multiplied by the upstream gradient of each token's loss."""
    kl_weight = None if call.kl_weight is None else scaled_weight(call.kl_weight, grad)
    return call._replace(ce_weight=scaled_weight(call.ce_weight, grad), kl_weight=kl_weight, token_stats=False)


@torch.library.custom_op(
    "fastdss::token_loss_backward",
    mutates_args=("main_grad",),
    schema=f"(Tensor(a!)? main_grad, Tensor grad, {_INPUTS}, bool[] needs) -> (Tensor, Tensor, Tensor)",
)
def token_loss_backward(*args: Any) -> tuple[Tensor, ...]:
    """Gradients of ``sum(grad * token_loss)`` for hidden, lm_head and bias, in their dtypes; with ``main_grad`` the
    head's is added to it, and an empty tensor returned in its place."""
    main_grad, grad, call, needs = args[0], args[1], LossCall(*args[2:-1]), args[-1]
    result = run_chunks(
        _upstream(call, grad), hidden_grad=needs[0], head_grad=needs[1], bias_grad=needs[2], main_grad=main_grad
    )
    result = result if main_grad is None else result._replace(d_head=None)
    return tuple(t.to(dtype) for t, dtype in zip(_gradients(result, grad), _dtypes(call), strict=True))


def _dtypes(call: LossCall) -> list[torch.dtype]:
    """Of the gradients of hidden, lm_head and bias."""
    return [call.accumulate if t is None else t.dtype for t in call[:3]]


@token_loss_backward.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    main_grad, call, needs = args[0], LossCall(*args[2:-1]), args[-1]
    returned = [needs[0], needs[1] and main_grad is None, needs[2]]
    shapes = (call.hidden.shape, call.lm_head.shape, call.lm_head.shape[:1])
    return tuple(
        call.hidden.new_empty(shape if there else (0,), dtype=dtype)
        for shape, there, dtype in zip(shapes, returned, _dtypes(call), strict=True)
    )


def _save_tokens(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _token_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    refuse_double_backward()
    if grad is None:
        return (None,) * (3 + len(_NO_GRADIENTS))
    needs = list(ctx.needs_input_grad[:3])
    found = token_loss_backward(None, grad, *ctx.saved_tensors, *ctx.options, needs)
    return *(t if need else None for t, need in zip(found, needs, strict=True)), *_NO_GRADIENTS


token_loss.register_autograd(_token_backward, setup_context=_save_tokens)


class MainGradSum(torch.autograd.Function):
    """:func:`summed_loss` whose backward adds the head's gradient to a buffer that autograd does not see."""

    @staticmethod
    def forward(ctx: Any, main_grad: Tensor, needs: list[bool], *args: Any) -> tuple[Tensor, ...]:
        ctx.main_grad = main_grad  # not saved: other micro-batches write to it before this one's backward
        output: tuple[Tensor, ...] = summed_loss(*args, needs)
        _save_summed(ctx, (*args, [needs[0], False, needs[2]]), output)
        return output[:4]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        if grad is None:
            return (None,) * (5 + len(_NO_GRADIENTS))
        gradients = ctx.saved_tensors  # read once: torch's checkpoint lets go of them when they are read
        ctx.main_grad.addcmul_(gradients[1], grad)
        return None, None, *_times(ctx, gradients, grad), *_NO_GRADIENTS


class MainGradLoss(torch.autograd.Function):
    """:func:`token_loss` whose backward adds the head's gradient to a buffer that autograd does not see."""

    @staticmethod
    def forward(ctx: Any, main_grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
        ctx.main_grad = main_grad  # not saved: other micro-batches write to it before this one's backward
        ctx.save_for_backward(*args[:_TENSORS])
        ctx.options = args[_TENSORS:]
        output: tuple[Tensor, ...] = token_loss(*args)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        if grad is None:
            return (None,) * (4 + len(_NO_GRADIENTS))
        needs = list(ctx.needs_input_grad[1:4])
        d_hidden, _, d_bias = token_loss_backward(ctx.main_grad, grad, *ctx.saved_tensors, *ctx.options, needs)
        return None, d_hidden if needs[0] else None, None, d_bias if needs[2] else None, *_NO_GRADIENTS
