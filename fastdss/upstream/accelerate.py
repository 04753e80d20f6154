"""Names of accelerate that its documentation does not promise, on modules and on an ``Accelerator``."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any


def real_forward(module: Any) -> str:
    """The name of the attribute that holds a module's own forward.

    Where accelerate dispatches a model over devices (``device_map``), it replaces ``forward`` on the instance and keeps
    the original under a private name.
    """
    return "_old_forward" if is_dispatched(module) else "forward"


def is_dispatched(module: Any) -> bool:
    """Whether accelerate's hooks wrap the module's forward; no public name says so."""
    return "_old_forward" in module.__dict__


def rebind_forward(module: Any) -> None:
    """Make accelerate's hooks call the forward of the module's class, after that class was changed."""
    if is_dispatched(module):
        module.__dict__["_old_forward"] = type(module).forward.__get__(module)
        functools.update_wrapper(module.__dict__["forward"], module.__dict__["_old_forward"])


@contextmanager
def ungathered(accelerator: Any) -> Iterator[None]:
    """Within the context ``gather_for_metrics`` returns this rank's value alone, without waiting for the others.

    TRL calls it in every ``compute_loss`` and cannot be told not to. A rank whose batch is shaped makes no such call,
    so the other ranks would wait for it for ever.
    """
    accelerator.__dict__["gather_for_metrics"] = lambda value: value
    try:
        yield
    finally:
        del accelerator.__dict__["gather_for_metrics"]


def never_dispatch(accelerator: Any) -> bool:
    """Let every rank read its own batches, streaming data included; returns False where the user asked for dispatch.

    The trainer's arguments have a public option for it, but where that is unset, accelerate decides by the kind of data
    when it makes a loader.
    """
    loading = accelerator.dataloader_config
    if loading.dispatch_batches:
        return False
    loading.dispatch_batches = False
    return True


def repeated_rows(accelerator: Any, rows: int) -> int:
    """How many of this rank's ``rows`` of the present batch repeat earlier ones, so that all ranks have as many.

    ``gather_for_metrics`` leaves them out of what it gathers, by attributes that are documented nowhere.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return 0
    behind: int = (accelerator.process_index + 1) * rows - state.remainder
    return min(max(behind, 0), rows)


def share_of_rows(accelerator: Any, rows: int) -> float:
    """How many rows of the present batch there are on a rank on average, for each one of this rank's own.

    ``gather_for_metrics`` keeps a rank's loss once for each row that repeats no other, and Trainer takes the mean of
    these: the mean over ranks, unless the last batch has more rows on one rank than on another. Losses that are
    multiplied by this share make it that again.
    """
    own = rows - repeated_rows(accelerator, rows)
    last = own < rows or (accelerator.gradient_state.end_of_dataloader and accelerator.gradient_state.remainder > 0)
    average = accelerator.gradient_state.remainder / accelerator.num_processes if last else rows
    return average / max(own, 1)


def fsdp_plugin(accelerator: Any) -> Any:
    """FSDP's settings, which say how the model will be split; None without FSDP."""
    return getattr(accelerator.state, "fsdp_plugin", None)


def cast_nothing(accelerator: Any) -> None:
    """Keep FSDP from rounding the model's float inputs and outputs: token weights, log-probabilities and the loss.

    torch's policies have public switches, but accelerate builds them from ``bf16=True`` itself.
    """
    plugin = fsdp_plugin(accelerator)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        second = {"cast_forward_inputs": False, "output_dtype": None}
        exact = second if plugin.fsdp_version == 2 else {"cast_root_forward_inputs": False}
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, **exact)


def splits_weights(accelerator: Any) -> bool:
    """Whether FSDP or ZeRO-3 will split the parameters over ranks."""
    zero = getattr(getattr(accelerator.state, "deepspeed_plugin", None), "zero_stage", 0)
    return zero == 3 or fsdp_plugin(accelerator) is not None


def flattens_weights(accelerator: Any) -> bool:
    """Whether FSDP's first version will keep the parameters in flat ones, of which no rank can make one whole alone."""
    plugin = fsdp_plugin(accelerator)
    return plugin is not None and plugin.fsdp_version == 1


def splits_batches(accelerator: Any) -> bool:
    """Whether context, sequence or tensor parallelism splits single rows over ranks."""
    parallel = getattr(accelerator, "parallelism_config", None)
    return parallel is not None and bool(parallel.cp_enabled or parallel.sp_enabled or parallel.tp_enabled)


def loaded_weight(model: Any, name: str) -> Any:
    """A copy of the weight ``name`` of ``model.state_dict()`` that ``device_map`` put elsewhere, to the memory of the
    CPU or the disk: on the model it is empty. ``align_module_device`` stands in no page of the documentation."""
    from accelerate.utils import align_module_device

    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    with align_module_device(module):
        return getattr(module, leaf).detach().clone()
