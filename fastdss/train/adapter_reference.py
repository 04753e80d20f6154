"""A policy with PEFT adapters as its own reference: with the adapters switched off, or with a copy of its trainable
weights from before training in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastdss.models.probes import distance, evaluating, some_tokens
from fastdss.models.split_params import layers_gathered
from fastdss.upstream.peft import belongs_to_adapters, has_learnt, is_adapted
from fastdss.upstream.torch import within_compiled


class StartCopy:
    """A copy of the trainable weights at the start, which takes their place during the reference's forward."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._pairs = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]

    @property
    def size(self) -> int:
        """How many weights the copy holds."""
        return sum(copy.numel() for _, copy in self._pairs)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within the context the model has its weights of the start; use it without gradients."""
        trained = [parameter.data for parameter, _ in self._pairs]
        try:
            for parameter, copy in self._pairs:
                parameter.data = copy.to(parameter.device, parameter.dtype)
            yield
        finally:
            for (parameter, _), values in zip(self._pairs, trained, strict=True):
                parameter.data = values


def adapter_off_is_not_the_start(model: Any, bare: torch.nn.Module) -> str | None:
    """Why the PEFT ``model`` with its adapters off differs from the model at the start of training; None where it does
    not. Adapters that were trained before, or PiSSA's, make it differ."""
    training = (name for name, p in model.named_parameters() if p.requires_grad)
    outside = [name for name in training if not belongs_to_adapters(model, name)]
    if outside:
        return f"weights outside the adapters train too ({outside[0]}, {len(outside)} in all)"
    if has_learnt(model):  # a few tokens need not show it: an expert may get none of them
        return "with the adapters off it is another model: a LoRA adapter was trained before, or is PiSSA's kind"
    embedding = bare.get_input_embeddings()  # type: ignore[operator]
    ids = some_tokens(embedding.weight.device)

    def found() -> tuple[Tensor, Tensor | None]:
        """Logits of a few tokens, and all rows of an embedding with an adapter, which may train a single one."""
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits, _embedded(embedding) if is_adapted(embedding) else None

    with evaluating(model), layers_gathered(bare):
        start, start_rows = found()
        with without_adapter(model):
            off, off_rows = found()
        moved = distance(off, start)
        if moved <= 2 * torch.finfo(start.dtype).eps:
            moved = 0.0  # an adapter that adds nothing may still round otherwise (DoRA in 16 bit)
        if start_rows is not None and off_rows is not None:
            norms = start_rows.double().norm(dim=-1).clamp(min=1e-30)
            moved = max(moved, ((off_rows - start_rows).double().norm(dim=-1) / norms).max().item())
    return f"with the adapters off the model differs by {moved:.2g}: one was trained before" if moved > 1e-5 else None


def _embedded(embedding: Any, at_once: int = 8192) -> Tensor:
    """All rows of an embedding, as it looks them up: ``[V, D]``."""
    ids = torch.arange(embedding.weight.shape[0], device=embedding.weight.device)
    return torch.cat([embedding(part[None])[0] for part in ids.split(at_once)])


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """``model.disable_adapter()``, but every parameter's ``requires_grad`` stays as it is, within and afterwards.

    PEFT sets it to False for adapters within, and to True afterwards for all active ones, also for those that were
    frozen. Within, FSDP2 would take the adapters for frozen: it reads the dtype of gradients at the first forward.
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for parameter, before in required:
            parameter.requires_grad_(before)

    try:
        with model.disable_adapter():
            restore()
            yield
    finally:
        restore()


def bare_peft(model: Any) -> Any:
    """The PEFT model within DDP or ``torch.compile``."""
    while not hasattr(model, "disable_adapter"):
        model = model.module if hasattr(model, "module") else within_compiled(model)
    return model
