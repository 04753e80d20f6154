"""A model while it is scored with: by one thread at a time, in evaluation mode, without gradients; and where tensors
lie then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fastdss.errors import UserError
from fastdss.models.causal_lm import backbone
from fastdss.upstream.accelerate import is_dispatched

_locks: WeakKeyDictionary[nn.Module, tuple[RLock, int]] = WeakKeyDictionary()  # with the process that made it
_making = Lock()


@contextmanager
def in_use(model: Any) -> Iterator[None]:
    """Within the context no other thread is in one for ``model``: it is in evaluation mode, and may have another
    attention, which the other thread would find there and leave behind. Afterwards each of its modules is in the mode
    that it had."""
    body = backbone(model)
    with _making:
        lock, process = _locks.setdefault(body, (RLock(), os.getpid()))
        if process != os.getpid():  # a fork copies locks, but not the threads that hold them and would let them go
            if not lock.acquire(blocking=False):
                raise UserError(
                    f"{type(model).__name__}: this process was forked while another thread scored with the model, and "
                    "has it half way: start workers before, or with the start method 'spawn'"
                )
            lock, _ = _locks[body] = RLock(), os.getpid()
    with lock, torch.inference_mode():
        training = [module for module in model.modules() if module.training]
        try:
            model.eval()
            yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Within the context, tensors that are made for no device are the CPU's, whatever ``torch.set_default_device``
    says. It is entered only where that says something, since it makes every call of torch a little slower."""
    try:
        elsewhere = torch.get_default_device().type != "cpu"
    except (AssertionError, RuntimeError):  # torch looks for the number of a device that this machine does not have
        elsewhere = True
    with torch.device("cpu") if elsewhere else nullcontext():
        yield


def input_device(model: Any) -> torch.device:
    """Where a forward's inputs go: to its embedding. Where that is offloaded, the CPU: accelerate moves them on."""
    embedding = model.get_input_embeddings()
    if not embedding.weight.is_meta:
        found: torch.device = embedding.weight.device
        return found
    if not is_dispatched(embedding):
        raise UserError(f"{type(model).__name__}: its weights lie on the meta device, which has no memory: load them")
    return torch.device("cpu")
