"""A model while it is scored with: by one thread at a time, in evaluation mode, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fastdss.models.causal_lm import backbone

_locks: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_making = Lock()


@contextmanager
def in_use(model: Any) -> Iterator[None]:
    """Within the context no other thread is in one for ``model``: it is in evaluation mode, and may have another
    attention, which the other thread would find there and leave behind. Afterwards each of its modules is in the mode
    that it had."""
    with _making:
        lock = _locks.setdefault(backbone(model), RLock())
    with lock, torch.inference_mode():
        training = [module for module in model.modules() if module.training]
        try:
            model.eval()
            yield
        finally:
            for module in training:
                module.training = True
