"""The one way this project decides that a number is right.

Truth is float64 on the *same* rounded inputs. Per-token values must lie within ``rtol * (1 + |truth|)``; gradients
within a relative Frobenius error. Sixteen-bit gradients may err 1.25 times as much as merely casting the truth to their
dtype, and at no single place more than twice what eager PyTorch errs at its worst. No absolute tolerance here would let
a zero gradient pass. ``tests/support/test_numerics.py`` checks the checker.
"""

from __future__ import annotations

import torch
from torch import Tensor

RTOL = {torch.float64: 1e-10, torch.float32: 1e-5}
CAST_MARGIN = 1.25
EAGER_MARGIN = 2.0


def assert_tokens_close(actual: Tensor, truth: Tensor, *, precision: torch.dtype, name: str = "tokens") -> None:
    """Every element of ``actual`` within rtol * (1 + |truth|); 16-bit inputs keep fp32's rule."""
    _check_comparable(actual, truth, name)
    rtol = RTOL.get(precision, RTOL[torch.float32])
    error = (actual.double() - truth).abs()
    excess = error / (rtol * (1 + truth.abs()))
    worst = int(excess.argmax()) if excess.numel() else 0
    if excess.numel() and not excess.flatten()[worst] <= 1:
        raise AssertionError(
            f"{_place(actual, truth, worst, name)}: {excess.flatten()[worst]:.3g} x the tolerance {rtol}"
        )


def assert_gradient_close(
    actual: Tensor,
    truth: Tensor,
    *,
    precision: torch.dtype,
    eager: Tensor | None = None,
    name: str = "gradient",
    cast_margin: float = CAST_MARGIN,
) -> None:
    """Relative Frobenius error within ``precision``'s rule, no row lost; ``eager``: the same-dtype eager result."""
    _check_comparable(actual, truth, name)
    _check_rows(actual, truth, name)
    error = (actual.double() - truth).abs()
    worst = int(error.argmax()) if error.numel() else 0
    norm, error_norm = truth.norm(), error.norm()
    if precision in RTOL:
        allowed, rule = RTOL[precision] * norm, f"{RTOL[precision]} of the norm"
    else:
        allowed = cast_margin * (truth.to(precision).double() - truth).norm()
        rule = f"{cast_margin} x the error of a cast to {precision}"
    if not error_norm <= allowed:
        raise AssertionError(
            f"{_place(actual, truth, worst, name)}: relative Frobenius error {error_norm / norm:.3g}, "
            f"allowed {allowed / norm:.3g} ({rule})"
        )
    if eager is not None:
        limit = EAGER_MARGIN * (eager.double() - truth).abs().max()
        if not error.max() <= limit:
            raise AssertionError(
                f"{_place(actual, truth, worst, name)}: error {error.max():.3g}, eager allows {limit:.3g}"
            )


def _check_comparable(actual: Tensor, truth: Tensor, name: str) -> None:
    if truth.dtype != torch.float64:
        raise TypeError(f"truth of {name} must be float64, got {truth.dtype}")
    if actual.shape != truth.shape:
        raise AssertionError(f"{name}: shape {list(actual.shape)}, expected {list(truth.shape)}")
    if not bool(truth.isfinite().all()):
        raise AssertionError(f"truth of {name} is not finite")
    bad = ~actual.isfinite()
    if bad.any():
        raise AssertionError(f"{_place(actual, truth, int(bad.flatten().int().argmax()), name)}: not finite")


def _check_rows(actual: Tensor, truth: Tensor, name: str) -> None:
    """A norm over everything can hide a small row: none may be missing, none may be there without cause."""
    if truth.dim() < 2 or not truth.numel():
        return
    rows = truth.flatten(1).norm(dim=1)
    got = actual.double().flatten(1).norm(dim=1)
    for rule, bad in (("missing", (rows > 1e-6 * rows.max()) & (got == 0)), ("invented", (rows == 0) & (got != 0))):
        if bad.any():
            row = int(bad.int().argmax())
            raise AssertionError(f"{name}[{row}] is {rule}: its norm is {got[row]:.6g}, expected {rows[row]:.6g}")


def _place(actual: Tensor, truth: Tensor, flat: int, name: str) -> str:
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), truth.shape))
    return f"{name}[{', '.join(map(str, where))}] = {actual[where].item():.9g}, expected {truth[where].item():.9g}"
