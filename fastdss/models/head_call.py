"""Run an operation on hidden states and the output head *inside* the head's own call, within the model's own forward.

FSDP2, ZeRO-3 and accelerate bring a head's weights together when the head is called and take them apart afterwards,
by hooks on that call. So the head's ``forward`` is swapped for the call, and only there is the weight read: the one
place where it is whole, where its gradient is reduced, and where PEFT has chosen between a saved copy and the original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fastdss.errors import UserError, UserTypeError
from fastdss.upstream import peft
from fastdss.upstream.accelerate import real_forward
from fastdss.upstream.torch import has_forward_hooks, is_fsdp1

from .adapted_head import applied, matrix_in_use
from .causal_lm import LMHead, logit_scale_and_softcap
from .split_params import gather_as_one

_SWAPPED = "_dss_swapped"
Operation = Callable[[Tensor, LMHead], tuple[Tensor, ...]]


def through_head(model: Any, operation: Operation, forward: Callable[[], Any]) -> tuple[tuple[Tensor, ...], Any]:
    """``forward()``, the model's own, with ``operation(hidden, head)`` in place of the product with the output head.

    Returns the operation's results and what the forward returned, whose ``logits`` have no meaning then. So whatever a
    class does on the way to its head (images laid among the tokens, a transform before the head, auxiliary losses) is
    done by the class itself, and only the logits are never made.

    ``model`` is the bare transformers model (no PEFT or DDP wrapper); ``hidden: [..., D]``. Gradients reach ``hidden``
    and whatever the weight is made of. Raises ``TypeError`` for a head whose effective weight fastdss cannot read, and
    for a forward that does not call its head exactly once.
    """
    outer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if outer is None:
        raise UserTypeError(f"expected a transformers causal LM with an output head, got {type(model).__name__}")
    made: list[tuple[Tensor, ...]] = []  # the operation's results, before any hook sees them
    results: list[tuple[Tensor, ...]] = []

    # What gathers and splits weights by hooks must see the results pass, or it gathers nothing for their backward. They
    # are taken by a hook of our own then, the last; without any, torch.compile could not trace one.
    hooked = is_fsdp1(outer) or any(has_forward_hooks(layer) for layer in (outer, *_layers(outer)))

    def taken(hidden: Tensor, found: tuple[Tensor, ...]) -> Tensor:
        """Keeps the results; the model's forward goes on with a tensor of the logits' shape, but for the words."""
        results.append(found)
        return hidden.new_zeros((*hidden.shape[:-1], 1))

    def forward_of(layer: nn.Module) -> Callable[[Tensor], Any]:
        def forward(hidden: Tensor) -> Any:
            states, weight, bias = applied(layer, hidden)
            scale, softcap = logit_scale_and_softcap(model)
            found = operation(states, LMHead(weight, bias, scale, softcap))
            made.append(found)
            return found if hooked else taken(hidden, found)

        return forward

    if peft.has_base(outer):
        gather_as_one(outer)
    with ExitStack() as swapped:
        for layer in _layers(outer):
            swapped.enter_context(_forward_as(layer, forward_of(layer)))
        if hooked:
            last = outer.register_forward_hook(lambda _, given, found: taken(given[0], _unchanged(found, made[-1])))
            swapped.callback(last.remove)
        returned = forward()
    if len(results) != 1:
        raise UserTypeError(
            f"{type(model).__name__}: expected one call of the output head in a forward, got {len(results)}"
        )
    return results[0], returned


def _unchanged(found: Any, made: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The results after the head's hooks, which may wrap each for the backward pass, but must keep their order."""
    if isinstance(found, tuple) and [getattr(part, "shape", None) for part in found] == [part.shape for part in made]:
        return found
    raise UserTypeError(
        "a forward hook on the output head returned something else than it was given: the head makes no logits here "
        "that a hook could change; remove the hook (hooks that change the head's inputs work)"
    )


def original_head(model: Any) -> tuple[Tensor, Tensor | None]:
    """The head's weight ``[V, D]`` and bias ``[V]`` with PEFT's adapters switched off."""
    layer = model.get_output_embeddings()
    return matrix_in_use(peft.base_of(peft.original_of(layer)), model.dtype)


def current_head(model: Any) -> tuple[Tensor, Tensor | None]:
    """The head's weight and bias in use, with the adapters added in; whole if no parameter is split over ranks."""
    return matrix_in_use(peft.copy_in_use(model.get_output_embeddings()), model.dtype)


def head_trains(model: Any) -> bool:
    """Whether any parameter of the output head requires a gradient."""
    layer = model.get_output_embeddings()
    # FSDP's first version may leave no parameters in a layer, but views of one flat parameter around it.
    return any(tensor.requires_grad for tensor in [*layer.parameters()] or [peft.base_of(layer).weight])


def head_is_adapted(model: Any) -> bool:
    """Whether PEFT may use another weight than the output head's original one."""
    return peft.is_adapted(model.get_output_embeddings())


def head_may_have_bias(model: Any) -> bool:
    """Whether the head in use adds a bias, its own or an adapter's; found without reading any weight."""
    layer = model.get_output_embeddings()
    return peft.is_adapted(layer) or getattr(peft.base_of(peft.original_of(layer)), "bias", None) is not None


def _layers(outer: Any) -> list[nn.Module]:
    """The layers of which ``outer`` calls exactly one."""
    layers: list[Any] = peft.copies_of(outer) if peft.is_copied(outer) else [outer]
    return [layer.module if is_fsdp1(layer) else layer for layer in layers]


@contextmanager
def _forward_as(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    name = real_forward(layer)
    was_set, before = name in layer.__dict__, layer.__dict__.get(name)
    if _SWAPPED in layer.__dict__:  # two that end in the wrong order would leave a forward that makes no logits
        raise UserError("this model's forward with token_weights runs in another thread: expected one at a time")
    layer.__dict__[_SWAPPED] = True
    layer.__dict__[name] = forward
    try:
        yield
    finally:
        del layer.__dict__[_SWAPPED]
        if was_set:
            layer.__dict__[name] = before
        else:
            del layer.__dict__[name]
