"""axolotl with dynamic safety shaping: ``plugins: [fastdss.integrations.axolotl.DSSPlugin]`` in its YAML.

The plugin brings the data (scored conversations), the collator, the trainer and the shaped loss; model, adapters,
precision, optimizer and launcher stay axolotl's.
"""

from __future__ import annotations

from typing import Any

from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from fastdss.errors import UserError
from fastdss.models.inputs import input_names
from fastdss.train.collator import DSSCollator, padding_of
from fastdss.train.config import DSSConfig
from fastdss.train.enable import bare_model, dss_config, enable_dss
from fastdss.train.prepare import pack_dataset, prepare_dss_dataset
from fastdss.train.reference import add_reference_logprobs
from fastdss.train.trainer import ShapedTraining


class DSSArgs(BaseModel):
    """The plugin's keys in axolotl's YAML.

    ``dss_data``: a file of scored conversations, as ``fastdss merge`` writes it.
    ``dss_eval_data``: another such file, to evaluate on.
    ``dss_kl``, ``dss_kl_scale``: see ``DSSConfig``.
    ``dss_reference``: ``adapter`` computes the reference at every step, with the adapters switched off. Unset, its
    log-probabilities are those of the model as loaded, computed once before training.
    ``dss_reference_cache``: a folder in which these log-probabilities are kept for the next run.
    ``dss_packing``: join rows to rows of ``sequence_len`` tokens.
    """

    dss_data: str | None = None
    dss_eval_data: str | None = None
    dss_kl: str | None = None
    dss_kl_scale: float | None = None
    dss_reference: str | None = None
    dss_reference_cache: str | None = None
    dss_packing: bool | None = None


class DSSPlugin(BasePlugin):  # type: ignore[misc]
    """axolotl's hooks, in the order in which axolotl calls them."""

    def get_input_args(self) -> str:
        return "fastdss.integrations.axolotl.DSSArgs"

    def register(self, cfg: Any) -> None:
        """Fill in ``datasets``, which axolotl's check of the configuration requires; ``load_datasets`` ignores it."""
        if cfg.get("dss_data") and not cfg.get("datasets"):
            cfg["datasets"] = [{"path": cfg["dss_data"], "type": "chat_template"}]

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """Read and tokenise the scored conversations of ``dss_data``; axolotl's own ``datasets`` are not read."""
        from axolotl.common.datasets import TrainDatasetMeta
        from axolotl.loaders import load_tokenizer
        from axolotl.utils.trainer import calculate_total_num_steps

        if not cfg.dss_data:
            raise UserError("dss_data: expected a file of scored conversations (fastdss merge writes it), got none")
        if cfg.sample_packing:
            raise UserError(
                "sample_packing would separate tokens from their weights: leave it false, and set dss_packing: true"
            )
        tokenizer = load_tokenizer(cfg)
        train = _prepared(cfg.dss_data, tokenizer, cfg)
        evaluated = _prepared(cfg.dss_eval_data, tokenizer, cfg) if cfg.dss_eval_data else None
        steps = cfg.max_steps or calculate_total_num_steps(cfg, train)
        return TrainDatasetMeta(train_dataset=train, eval_dataset=evaluated, total_num_steps=steps)

    def post_model_load(self, cfg: Any, model: Any) -> None:
        enable_dss(model, _config(cfg))

    def get_trainer_cls(self, cfg: Any) -> type:
        return trainer_class(cfg.dss_reference)

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[Any, dict[str, Any]]:
        return make_collator, {"config": _config(cfg), "padding_free": bool(cfg.dss_packing)}

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Tell the collator which inputs the model takes; compute the reference's log-probabilities unless it is live.

        At this point the model is still as it was loaded.
        """
        trainer.data_collator.model_inputs = input_names(bare_model(trainer.model))
        config = dss_config(trainer.model)
        if config is None or not config.kl_scale or cfg.dss_reference:
            return
        trainer.model.to(trainer.args.device)
        for name in ("train_dataset", "eval_dataset"):
            data = getattr(trainer, name)
            if data is not None and "ref_logprobs" not in data.column_names:
                with trainer.compute_loss_context_manager():  # the precision in which the policy will compute
                    known = add_reference_logprobs(data, trainer.model, cache_dir=cfg.dss_reference_cache)
                setattr(trainer, name, known)


def trainer_class(ref_model: str | None) -> type:
    """axolotl's trainer, with the shaped loss for batches that have ``token_weights``."""

    class DSSAxolotlTrainer(ShapedTraining, AxolotlTrainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._set_up_dss(ref_model)

    return DSSAxolotlTrainer


def make_collator(
    tokenizer: Any,
    *,
    config: DSSConfig,
    padding_free: bool,
    pad_to_multiple_of: int | None = None,
    padding: bool = True,
    return_tensors: str = "pt",
) -> DSSCollator:
    """A ``DSSCollator`` from the keywords that axolotl gives every collator.

    ``padding`` and ``return_tensors`` are accepted and have no effect: ``DSSCollator`` always pads and makes tensors.
    """
    pad = padding_of(tokenizer)
    return DSSCollator(pad, padding_free=padding_free, pad_to_multiple_of=pad_to_multiple_of, config=config)


def _config(cfg: Any) -> DSSConfig:
    return DSSConfig().with_said(kl=cfg.dss_kl, kl_scale=cfg.dss_kl_scale)


def _prepared(path: str, tokenizer: Any, cfg: Any) -> Any:
    from datasets import load_dataset

    kind = "parquet" if path.endswith(".parquet") else "json"
    rows = load_dataset(kind, data_files=path, split="train")
    prepared = prepare_dss_dataset(rows, tokenizer, max_length=cfg.sequence_len)
    return pack_dataset(prepared, cfg.sequence_len) if cfg.dss_packing else prepared
