"""Switch dynamic safety shaping on in a causal LM, whichever trainer trains it.

``enable_dss`` changes the class of one instance to a subclass of the same name, whose ``forward`` takes
``token_weights``. It changes the class instead of patching ``forward`` on the instance, so that bound methods,
``deepcopy``, ``pickle``, ``save_pretrained``, accelerate's wrappers and FSDP2's own change of class still work.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from fastdss.errors import UserError, UserTypeError
from fastdss.loss.functional import Backend, LiveRows
from fastdss.loss.objective import KLName
from fastdss.models.packing import packed_inputs, two_documents
from fastdss.models.split_params import layers_gathered
from fastdss.upstream.accelerate import is_dispatched, rebind_forward
from fastdss.upstream.deepspeed import is_engine
from fastdss.upstream.peft import learns_prompts
from fastdss.upstream.torch import has_fsdp1, is_compiled, is_fsdp1, within_compiled
from fastdss.upstream.transformers import tensor_parallel_ranks

from .config import DSSConfig
from .forward import CONFIG, DSSOutput, Given, head_states, live, shaped_forward
from .forward_check import check_forward

__all__ = ["DSSOutput", "check_packing", "disable_dss", "dss_config", "enable_dss"]
Model = TypeVar("Model", bound=nn.Module)


def enable_dss(
    model: Model,
    config: DSSConfig | None = None,
    *,
    kl: KLName | None = None,
    kl_scale: float | None = None,
    backend: Backend | None = None,
    chunk_bytes: int | None = None,
    label_smoothing: float | None = None,
    grad_tol: float | None = None,
    dft: bool | None = None,
    csft_beta: float | None = None,
    check: bool = True,
) -> Model:
    """Switch the DSS loss on in a causal LM: its forward then knows ``token_weights``.

    ```python
    model(input_ids, labels=labels, token_weights=w, ref_logprobs=r).loss
    # per response token  w * CE + (1 - w) * kl_scale * KL,  summed and divided by num_items_in_batch,
    # or by the number of labels that count (arXiv 2505.17196, equation 3)
    ```

    The forward takes, all optional and by keyword:

    - ``token_weights: [B, T]`` STAR scores in [0, 1]. Without them the model behaves as it did before.
    - ``ref_logprobs: [B, T]`` the reference's log p(label) (for k1, k2, k3), or ``ref_hidden: [B, T, D]``, the
      reference's last hidden states, with ``ref_lm_head: [V, D]`` where the policy's own head is being trained, and its
      ``ref_bias: [V]`` where the head has one. ``ref_logit_scale`` and ``ref_softcap`` where they are not the policy's.
    - ``ref_slope: [B, T, D]`` and ``ref_offset: [B, T]``, of a reference for the forward KL with a frozen head: what
      ``add_reference_logprobs(…, forward_kl=True)`` stores and ``DSSCollator`` collates.
    - ``num_items_in_batch`` the divisor over all micro-batches of a step.
    - ``rows`` what ``live_rows(labels, token_weights, kl_scale=…, shift=True)`` returned on the host, or its ``index``
      with ``kl_rows=`` its count (``DSSCollator`` makes them). Without them the loss asks the device which rows count,
      and the host waits for the answer.
    - ``token_stats=True``: the output also holds each token's ``entropy`` and ``correct``, whether its label was the
      likeliest word. They come from the same pass over the logits.
    - ``dss_ask`` one of "loss" (default), "logprobs", "reference" (``logprobs``, ``ref_slope`` and ``ref_offset``),
      "hidden", "logits": return only that, without a loss.

    ``labels``, ``token_weights`` and ``ref_logprobs`` are aligned position by position with ``input_ids`` and shifted
    inside, as transformers does. No logits are built. The output is a ``DSSOutput``.

    Args:
        model: a causal LM of transformers, bare or within PEFT, DDP or ``torch.compile``; it is changed in place.
        config: the options of the whole run; the next eight are shortcuts to its fields. A second call replaces all
            options of the first.
        kl: form of the KL term.
        kl_scale: the KL term's factor.
        backend: which implementation computes the loss.
        chunk_bytes: bound of the slab of logits.
        label_smoothing: share of each label's mass that is spread over the vocabulary.
        grad_tol: share of the gradient of the logits that may be left out.
        dft: weigh each token of the cross-entropy term by its own probability.
        csft_beta: bound the pull of that term at a label, and let it fade above the reference's probability.
        check: try out on a few tokens whether fastdss computes the model's own logits, and whether the model's own
            loss is their cross-entropy. It needs real weights, so pass False on the meta device.

    Returns:
        nn.Module: the model that was given.

    Raises:
        TypeError: for models and heads fastdss cannot read, prompt learning, DataParallel and tensor parallelism.
        ValueError: where these logits differ, or the class adds a term of its own to its loss.
    """
    config = (config or DSSConfig()).with_said(
        kl=kl,
        kl_scale=kl_scale,
        backend=backend,
        chunk_bytes=chunk_bytes,
        grad_tol=grad_tol,
        label_smoothing=label_smoothing,
        dft=dft,
        csft_beta=csft_beta,
    )
    bare = bare_model(model)
    if is_engine(bare):
        raise UserTypeError("expected the model inside the engine, got a DeepSpeedEngine: pass engine.module")
    _refuse_class(bare)
    ranks = tensor_parallel_ranks(bare)
    if ranks > 1:
        raise UserTypeError(
            f"tensor parallelism splits this {type(bare).__name__} over {ranks} ranks, its head too: call dss_loss "
            "yourself with the local rows of the head and group=, or shard by FSDP2 or ZeRO-3 instead"
        )
    if isinstance(bare, _DSSModel):
        bare.__dict__[CONFIG] = config
        return model
    if has_fsdp1(model):
        raise UserError(
            "FullyShardedDataParallel wraps this model already, and outside its own forward its weights are no "
            "matrices: enable DSS before it (fully_shard takes it before or after)"
        )
    if "forward" in bare.__dict__ and not is_dispatched(bare):
        raise UserError(
            f"the forward of this {type(bare).__name__} was already replaced on the instance "
            f"(by {bare.forward!r}): enable DSS before that"
        )
    original: Any = type(bare)
    bare.__dict__[CONFIG] = config
    _set_class(bare, _dss_class(original))
    if check:
        try:
            check_forward(model, bare)
        except BaseException:
            _restore(bare, original)
            raise
    return model


def disable_dss(model: Model) -> Model:
    """Undo ``enable_dss``; does nothing where it was not called.

    Args:
        model: the model that was given to ``enable_dss``, or what wraps it.

    Returns:
        nn.Module: the same.
    """
    bare = bare_model(model)
    if type(bare).__dict__.get("_dss_original") is not None:
        _restore(bare, type(bare)._dss_original)
    else:  # FSDP2 made a subclass of ours, so ours stays; without a configuration it only calls the original
        bare.__dict__.pop(CONFIG, None)
    return model


def dss_config(model: Any) -> DSSConfig | None:
    """The configuration that ``enable_dss`` left on the model, or None where DSS is off."""
    config: DSSConfig | None = bare_model(model).__dict__.get(CONFIG)
    return config


def bare_model(model: Any) -> Any:
    """The transformers model inside DDP, FSDP's first version, ``torch.compile`` and PEFT.

    Raises ``TypeError`` for DataParallel, and for PEFT's prompt learning, whose extra tokens have no weights.
    """
    while True:
        if isinstance(model, nn.DataParallel):
            raise UserTypeError(
                "DataParallel is not supported: use DistributedDataParallel (torchrun, accelerate launch)"
            )
        if isinstance(model, nn.parallel.DistributedDataParallel) or is_fsdp1(model):
            model = model.module
        elif is_compiled(model):
            model = within_compiled(model)
        elif hasattr(model, "get_base_model"):
            if learns_prompts(model):
                raise UserTypeError(
                    "PEFT's prompt learning adds tokens that have no weight: use LoRA or full fine-tuning"
                )
            model = model.get_base_model()
        else:
            return model


class _DSSModel:
    """Base of the subclasses that are made here at run time. Pickle cannot import such a class by its name, so an
    instance is pickled as its original class and made into the subclass again when it is loaded."""

    _dss_original: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        original = type(self).__dict__.get("_dss_original")
        return reduced if original is None else (_new, (original,), *reduced[2:])


def _new(original: type) -> Any:
    made: Any = _dss_class(original)
    return made.__new__(made)


@functools.cache
def _dss_class(original: type) -> type:
    def forward(
        self: Any,
        *args: Any,
        token_weights: Tensor | None = None,
        ref_logprobs: Tensor | None = None,
        ref_slope: Tensor | None = None,
        ref_offset: Tensor | None = None,
        ref_hidden: Tensor | None = None,
        ref_lm_head: Tensor | None = None,
        ref_bias: Tensor | None = None,
        ref_logit_scale: float | None = None,
        ref_softcap: float | Literal["same"] | None = "same",
        rows: LiveRows | Tensor | None = None,
        kl_rows: int | None = None,
        real_tokens: int | None = None,
        token_stats: bool = False,
        dss_ask: str | None = None,
        **kwargs: Any,
    ) -> Any:
        stored = ref_logprobs, ref_slope, ref_offset
        reference = *stored, ref_hidden, ref_lm_head, ref_bias, ref_logit_scale, ref_softcap
        given = Given(token_weights, *reference, live(rows, kl_rows), token_stats)
        if dss_ask is None and token_weights is None:
            given.refuse_without_weights()
            return original.forward(self, *args, **kwargs)  # type: ignore[attr-defined]
        return shaped_forward(self, args, kwargs, given, "loss" if dss_ask is None else dss_ask, real_tokens)

    own = inspect.signature(original.forward)  # type: ignore[attr-defined]
    forward.__signature__ = _merged(own, inspect.signature(forward))  # type: ignore[attr-defined]
    forward.__doc__ = original.forward.__doc__  # type: ignore[attr-defined]
    members = {
        "forward": forward,
        "_dss_original": original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    return type(original.__name__, (_DSSModel, original), members)


def _merged(own: inspect.Signature, ours: inspect.Signature) -> inspect.Signature:
    """The model's own parameters, then ours, keyword-only. Trainers keep the columns that the signature names."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [parameter for parameter in ours.parameters.values() if parameter.kind is keyword]
    first = list(own.parameters.values())
    last = [first.pop()] if first and first[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    return own.replace(parameters=[*first, *added, *last])


def _set_class(model: Any, cls: type) -> None:
    model.__class__ = cls
    rebind_forward(model)


def _restore(model: Any, original: type) -> None:
    model.__dict__.pop(CONFIG, None)
    _set_class(model, original)


def _refuse_class(model: Any) -> None:
    if not hasattr(model, "get_output_embeddings") or not hasattr(model, "config"):
        raise UserTypeError(f"expected a transformers causal LM with a backbone and a head, got {type(model).__name__}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserTypeError(
            f"{type(model).__name__} is an encoder-decoder, whose labels do not come after the decoder's inputs but "
            "beside them: expected a decoder-only causal LM; for your own loop there is dss_loss(shift=False)"
        )


def check_packing(model: Any) -> None:
    """Raise ``ValueError`` where tokens see other documents of a packed row; see models/packing.py."""
    bare = bare_model(model)
    with layers_gathered(bare):
        inputs = two_documents(2, 2, bare.get_input_embeddings().weight.device)
        packed_inputs(bare, functools.partial(head_states, bare), inputs)
