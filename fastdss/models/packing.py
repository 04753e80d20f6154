"""Whether a model keeps the documents of one packed row apart, and what it has to be given for that.

A class that masks by other means than ``position_ids`` reads across the documents without a word, and the loss of
packed rows is then another one. So no word is taken for it: two documents in one row are compared with one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdss.errors import UserError, UserTypeError
from fastdss.upstream.transformers import attention_of, masks_by_kind

from .probes import distance, evaluating

_FLASH = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
_KEPT = "_dss_packing"
Inputs = dict[str, Any]
States = Callable[..., Tensor]  # keyword inputs -> the states [B, T, D] that reach the head


class Packing(NamedTuple):
    """How packed rows are passed to a model; ``way`` is None where no known way keeps the documents apart."""

    way: str | None
    reason: str


def is_packed(inputs: Mapping[str, Any]) -> bool:
    """Whether a batch holds rows of several documents: it has their lengths, or positions that do not rise by one."""
    if (ends := inputs.get("cu_seq_lens_q")) is not None:
        return len(ends) > 2
    positions = inputs.get("position_ids")
    if positions is None or positions.ndim != 2 or inputs.get("attention_mask") is not None:
        return False
    if torch.compiler.is_compiling():  # values cannot be looked at while a graph is traced
        return False
    return bool(((positions[:, 1:] == 0) & (positions[:, :-1] >= 0)).any())


def packed_inputs(model: Any, states: States, inputs: Inputs) -> Inputs:
    """``inputs`` of a packed batch as this model needs them.

    Raises ``ValueError`` for a model that has no way to keep documents apart, naming its class and the way out.
    """
    found = packing_of(model, states)
    if found.way is None:
        raise UserError(
            f"{type(model).__name__} cannot keep the documents of a packed row apart ({found.reason}): pad instead, "
            "with padding_free=False and packing=False, or choose an attn_implementation for which it can"
        )
    return _WAYS[found.way](model, inputs)


def packing_of(model: Any, states: States) -> Packing:
    """The first way that keeps two short documents apart; it is found once for each attention implementation."""
    attention = attention_of(model.config.get_text_config(decoder=True))
    known: dict[str, Packing] = model.__dict__.setdefault(_KEPT, {})
    if attention not in known:
        if torch.compiler.is_compiling():
            raise UserError("packed rows in a compiled model: expected enable_dss(model) before torch.compile")
        known[attention] = _proven(model, states)
    return known[attention]


def _proven(model: Any, states: States) -> Packing:
    reasons = []
    for way, made in _WAYS.items():
        try:
            reason = _leak(model, states, made)
        except Exception as error:  # another library's class: whatever it raises, this way does not work for it
            reason = f"{type(error).__name__}: {str(error)[:60]}"
        if reason is None:
            return Packing(way, "")
        reasons.append(f"{way}: {reason}")
    return Packing(None, reasons[0])


def _leak(model: Any, states: States, made: Callable[[Any, Inputs], Inputs]) -> str | None:
    """What goes wrong with the second of two packed documents, None where nothing does."""
    embedding = model.get_input_embeddings()
    room = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1024
    # Both longer than the blocks of 128 tokens that some layers compress: a block of the first document is what a long
    # second one would read as its own first (DeepSeek V4). Unequally long, so that no block begins with the second.
    first, second = min(150, room // 2), min(141, room // 2)
    words = getattr(embedding, "num_embeddings", None) or len(embedding.weight)  # ZeRO-3 leaves an empty weight
    vocabulary, device = min(words, 1000), embedding.weight.device
    document = (torch.arange(second, device=device) * 7 + 3) % vocabulary
    others = [(torch.arange(first, device=device) * step + 5) % vocabulary for step in (7, 11)]

    def beside(other: Tensor, at_end: bool = False) -> Tensor:
        """The document's states in one row with another one, which stands before it, or behind it."""
        order, lengths = ((document, other), (second, first)) if at_end else ((other, document), (first, second))
        found = states(input_ids=torch.cat(order)[None], **made(model, two_documents(*lengths, device)))
        return found[:, :second] if at_end else found[:, first:]

    with evaluating(model):
        with_one, with_other = map(beside, others)
        alone = states(input_ids=document[None])
        eps = torch.finfo(alone.dtype).eps
        seen = distance(with_one, with_other)
        # The shapes are the same, and so is the rounding, but where experts get other numbers of tokens. A document
        # behind cannot be seen, so what it changes is that rounding.
        if 1e-5 < seen <= 2 * eps:
            rounding = distance(*(beside(other, at_end=True) for other in others))
            seen = 0.0 if seen <= 4 * rounding else seen
    if seen > 1e-5:
        return f"one document's states change by {seen:.2g} with the other"
    if (moved := distance(with_one, alone)) > max(1e-3, 32 * eps):
        return f"a document's states differ by {moved:.2g} from those it has alone"
    return None


def two_documents(first: int, second: int, device: torch.device) -> Inputs:
    positions = torch.cat([torch.arange(first, device=device), torch.arange(second, device=device)])[None]
    ends = torch.tensor([0, first, first + second], dtype=torch.int32, device=device)
    longest = max(first, second)
    return {"position_ids": positions} | dict(zip(_FLASH, (ends, ends, longest, longest), strict=True))


def _as_given(_: Any, inputs: Inputs) -> Inputs:
    """The inputs as they are: ``position_ids``, or ``cu_seq_lens_*`` for variable-length kernels, do it."""
    return inputs


def _with_seq_idx(_: Any, inputs: Inputs) -> Inputs:
    """The inputs with ``seq_idx``: kernels of state-space layers reset their state where it changes."""
    starts = (inputs["position_ids"] == 0).to(torch.int32)
    return inputs | {"seq_idx": starts.cumsum(-1).to(torch.int32) - 1}


def _with_masks(model: Any, inputs: Inputs) -> Inputs:
    """The inputs with a mask for each kind of layer, for classes that do not pass positions to their masks."""
    positions = inputs["position_ids"]
    shape = torch.empty((*positions.shape, 0), dtype=model.dtype, device=positions.device)
    masks = masks_by_kind(model.config, shape, positions)
    if masks is None:
        raise UserTypeError("no mask for this attention")
    return {name: value for name, value in inputs.items() if name not in _FLASH} | {"attention_mask": masks}


_WAYS: dict[str, Callable[[Any, Inputs], Inputs]] = {
    "as given": _as_given,
    "with seq_idx": _with_seq_idx,
    "with masks": _with_masks,
}
