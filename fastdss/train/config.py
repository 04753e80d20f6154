"""What can be set about the shaped loss of a model that is trained: one definition, one check."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, fields, replace
from typing import Any

from fastdss.errors import UserError
from fastdss.loss.checks import BACKENDS, check_constrained_kl, check_grad_tol, check_kl_scale, check_number
from fastdss.loss.functional import Backend
from fastdss.loss.objective import FULL_KL, KL, KLName


@dataclass(frozen=True)
class DSSConfig:
    """The options of ``dss_loss`` that belong to a whole run; ``enable_dss``, trainers and ``DSSCollator`` take them.

    Args:
        kl: form of the KL term, one of ``KL``.
        kl_scale: the KL term's factor, lambda in the paper.
        backend: ``"auto"``, ``"torch"``, ``"triton"`` or ``"fused"`` (docs/loss.md).
        chunk_bytes: bound of the slab of logits; None leaves it to the device.
        label_smoothing: share of each label's mass that is spread over the vocabulary in the cross-entropy term.
        grad_tol: share of the gradient of the logits that the head's products may leave out; None is exact.
        dft: weigh each token of the cross-entropy term by its own probability, as a constant (dynamic fine-tuning).
        csft_beta: in the cross-entropy's place, a term whose pull at a label is bounded and fades once the label is
            likelier than under the reference, the sooner the larger this number (constrained fine-tuning); None: none.

    Raises:
        ValueError: for a value that is not one of these.
    """

    kl: KLName = KL.K2
    kl_scale: float = 0.5
    backend: Backend = "auto"
    chunk_bytes: int | None = None
    label_smoothing: float = 0.0
    grad_tol: float | None = None
    dft: bool = False
    csft_beta: float | None = None

    def __post_init__(self) -> None:
        if self.kl not in list(KL):
            raise UserError(f"kl: expected one of {', '.join(KL)}, got {self.kl!r}")
        if isinstance(self.kl_scale, bool) or not isinstance(self.kl_scale, int | float):
            raise UserError(f"kl_scale: expected a finite number >= 0, got {self.kl_scale!r}")
        check_kl_scale(self.kl_scale)
        if self.backend not in BACKENDS:
            raise UserError(f"backend: expected one of {', '.join(BACKENDS)}, got {self.backend!r}")
        for name in ("label_smoothing", *(["chunk_bytes"] if self.chunk_bytes is not None else [])):
            check_number(name, getattr(self, name))
        if self.chunk_bytes is not None and not 0 < self.chunk_bytes < math.inf:
            raise UserError(f"chunk_bytes: expected a positive number, got {self.chunk_bytes}")
        check_grad_tol(self.grad_tol)
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing: expected a number in [0, 1), got {self.label_smoothing}")
        if not isinstance(self.dft, bool):
            raise UserError(f"dft: expected True or False, got {self.dft!r}")
        if self.dft and self.label_smoothing:
            raise UserError(f"dft weighs -log p alone by p: expected label_smoothing=0, got {self.label_smoothing}")
        if self.csft_beta is not None:
            self._check_constrained()
        object.__setattr__(self, "kl", KL(self.kl))

    def _check_constrained(self) -> None:
        beta = self.csft_beta
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < math.inf:
            raise UserError(f"csft_beta: expected None or a positive, finite number, got {beta!r}")
        if self.dft or self.label_smoothing:
            raise UserError(
                "csft_beta makes another first term: expected dft=False and label_smoothing=0, "
                f"got {self.dft} and {self.label_smoothing}"
            )
        check_constrained_kl(self.kl)

    @property
    def needs_logits(self) -> bool:
        """Whether the KL term sums over the vocabulary, so that log-probabilities of the labels do not do."""
        return self.kl in FULL_KL and self.kl_scale > 0

    @property
    def needs_reference(self) -> bool:
        """Whether any term compares with the reference."""
        return self.kl_scale > 0 or self.csft_beta is not None

    def known_by(self, columns: Container[str]) -> bool:
        """Whether columns of the data hold all of the reference that this form of KL needs."""
        if self.kl == KL.FORWARD:
            return "ref_slope" in columns and "ref_offset" in columns
        return self.kl not in FULL_KL and "ref_logprobs" in columns

    def with_said(self, **said: object) -> DSSConfig:
        """This configuration with those of the keywords that are not None, which means "not said"."""
        return replace(self, **{name: value for name, value in said.items() if value is not None})  # type: ignore[arg-type]

    @staticmethod
    def taken_from(keywords: dict[str, Any]) -> dict[str, Any]:
        """The shortcuts among ``keywords``, which a trainer takes beside those of its base class; removed there."""
        return {field.name: keywords.pop(field.name) for field in fields(DSSConfig) if field.name in keywords}

    def contradicted(self, said: DSSConfig | None, **keywords: object) -> list[str]:
        """Names of what was said, whole or by keyword, and differs from this configuration."""
        names = [field.name for field in fields(self)]
        given = {name: getattr(said, name) for name in names} if said is not None else {}
        given |= {name: value for name, value in keywords.items() if value is not None}
        return [name for name in names if name in given and given[name] != getattr(self, name)]
