"""Names of accelerate that its documentation does not promise, on modules and on an ``Accelerator``."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any


def real_forward(module: Any) -> str:
    """The attribute under which a module's own forward lies: dispatch over devices (``device_map``) replaces
    ``forward`` on the instance, and keeps the real one under a private name."""
    return "_old_forward" if is_dispatched(module) else "forward"


def is_dispatched(module: Any) -> bool:
    """Whether accelerate's hooks stand around the module's forward; no public name tells."""
    return "_old_forward" in module.__dict__


def rebind_forward(module: Any) -> None:
    """After a change of class: what accelerate's hooks call becomes the new class's forward."""
    if is_dispatched(module):
        module.__dict__["_old_forward"] = type(module).forward.__get__(module)
        functools.update_wrapper(module.__dict__["forward"], module.__dict__["_old_forward"])


@contextmanager
def ungathered(accelerator: Any) -> Iterator[None]:
    """Within it ``gather_for_metrics`` gives this rank's alone. TRL calls it in every ``compute_loss`` and has no
    option for that; a rank that makes no such call would be waited for."""
    accelerator.__dict__["gather_for_metrics"] = lambda value: value
    try:
        yield
    finally:
        del accelerator.__dict__["gather_for_metrics"]


def never_dispatch(accelerator: Any) -> bool:
    """Let every rank read its own batches, also of data that streams; False where the user asked for the contrary.

    A public option of the trainer's arguments, but unset it is decided when a loader is made, by the kind of data.
    """
    loading = accelerator.dataloader_config
    if loading.dispatch_batches:
        return False
    loading.dispatch_batches = False
    return True


def fsdp_plugin(accelerator: Any) -> Any:
    """The plugin by which the model will be split, None without FSDP."""
    return getattr(accelerator.state, "fsdp_plugin", None)


def cast_nothing(accelerator: Any) -> None:
    """FSDP2 would round float inputs and outputs of the model, weights, log-probabilities and loss among them.

    Public in torch's ``MixedPrecisionPolicy``, but accelerate makes that out of ``bf16=True`` by itself.
    """
    plugin = fsdp_plugin(accelerator)
    if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
        exact = {"cast_forward_inputs": False, "output_dtype": None}
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, **exact)


def splits_weights(accelerator: Any) -> bool:
    """Whether FSDP or ZeRO-3 will split the parameters over ranks."""
    zero = getattr(getattr(accelerator.state, "deepspeed_plugin", None), "zero_stage", 0)
    return zero == 3 or fsdp_plugin(accelerator) is not None


def splits_batches(accelerator: Any) -> bool:
    """Whether context, sequence or tensor parallelism splits what one row consists of."""
    parallel = getattr(accelerator, "parallelism_config", None)
    return parallel is not None and bool(parallel.cp_enabled or parallel.sp_enabled or parallel.tp_enabled)
