"""What bench_loss.py compares: the cases, their inputs, and every method as one function of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from environment import ROOT
from torch import Tensor

from fastdss import dss_loss, live_rows, token_logprobs, weighted_ce
from fastdss.demo.policy import load_policy
from fastdss.loss.functional import LiveRows
from fastdss.models.causal_lm import backbone, lm_head

KL_SCALE = 0.5
_WINDOW = 512  # tokens of context at most
TEXT_STATES = Path(__file__).parent / "text_states.npz"  # made by text_states.py, not committed


@dataclass(frozen=True)
class Case:
    n: int
    d: int
    v: int
    dtype: str = "float32"
    live: float = 0.5  # share of rows whose label counts
    loss: str = "ce"  # "ce", "k2" (with ref_logprobs) or "reverse" (with reference hidden states)
    frozen: bool = False  # the head
    spread: float = 3.0  # standard deviation of the logits
    text: bool = False  # hidden states, head and labels of SmolLM2 on English prose instead


CPU_GRID = [
    Case(2048, 576, 49152, "float32"),
    Case(2048, 576, 49152, "bfloat16"),
    Case(2048, 576, 49152, "float32", loss="k2"),
    Case(2048, 576, 49152, "bfloat16", loss="k2"),
    Case(1024, 576, 49152, "float32", loss="k2", frozen=True),
    Case(1024, 576, 49152, "float32", loss="reverse"),
    Case(1024, 576, 49152, "float32", loss="reverse", frozen=True),
    *(Case(2048, 576, 49152, dtype, 1.0, loss, text=True)
      for dtype, loss in (("float32", "ce"), ("float32", "k2"), ("float32", "reverse"), ("bfloat16", "k2"))),
]  # fmt: skip
# Llama-3 8B and 1B, Qwen3 0.6B, 4B and 8B, Gemma-3 1B and 4B; the first is the shape of the published figures.
_HEADS = [
    (4096, 128256),
    (2048, 128256),
    (1024, 151936),
    (2560, 151936),
    (4096, 151936),
    (1152, 262144),
    (2560, 262144),
]
GPU_GRID = [
    *(Case(8192, *_HEADS[0], "bfloat16", live, loss, frozen)
      for loss in ("ce", "k2", "reverse") for frozen in (False, True) for live in (1.0, 0.5)),
    *(Case(8192, *head, "bfloat16", 1.0, "ce") for head in _HEADS[1:]),
    *(Case(n, *_HEADS[0], "bfloat16", 1.0, "ce") for n in (512, 4096, 16384, 32768)),
    Case(8192, *_HEADS[0], "bfloat16", 1.0, "ce", spread=1.0),
    *(Case(4096, 576, 49152, "bfloat16", 1.0, loss, text=True) for loss in ("ce", "k2", "reverse")),
]  # fmt: skip


class Unavailable(Exception):
    """Why a case, or a method on it, cannot run here."""


@dataclass(frozen=True, eq=False)
class Inputs:
    case: Case
    hidden: Tensor  # [N, D]
    head: Tensor  # [V, D]
    labels: Tensor  # [N]
    star: Tensor  # [N]
    ref_hidden: Tensor  # [N, D]
    ref_head: Tensor  # [V, D]
    ref_logprobs: Tensor  # [N]
    rows: LiveRows  # as a collator finds them on the host

    @property
    def leaves(self) -> list[Tensor]:
        return [self.hidden] if self.case.frozen else [self.hidden, self.head]

    def first(self, rows: int, dtype: torch.dtype) -> Inputs:
        """A copy of the first rows in another dtype."""

        def taken(t: Tensor, cut: bool) -> Tensor:
            part = (t[:rows] if cut else t).detach().clone()
            return part.to(dtype) if t.is_floating_point() else part

        cut = [taken(t, t.shape[0] == self.case.n) for t in vars(self).values() if isinstance(t, Tensor)]
        made = Inputs(self.case, *cut, rows=rows_of(self.case, cut[2], cut[3]))
        made.hidden.requires_grad_()
        made.head.requires_grad_(not self.case.frozen)
        return made


def rows_of(case: Case, labels: Tensor, star: Tensor) -> LiveRows:
    kl_scale = 0.0 if case.loss == "ce" else KL_SCALE
    return live_rows(labels.cpu(), star.cpu(), kl_scale=kl_scale).to(labels.device)


def make_inputs(case: Case, device: str) -> Inputs:
    g = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    if case.text:
        hidden, head, labels = (t.to(device, copy=True) for t in smollm2_on_prose(case.n))
        ref_hidden = hidden + 0.1 * hidden.std() * normal(case.n, case.d)
        ref = token_logprobs(ref_hidden, head, labels)
    else:
        head = normal(case.v, case.d).mul_(case.spread / case.d**0.5)
        labels = torch.randint(0, case.v, (case.n,), generator=g, device=device)
        hidden = normal(case.n, case.d) + 12 / case.spread**2 * head[labels]
        labels[torch.randperm(case.n, generator=g, device=device)[: round(case.n * (1 - case.live))]] = -100
        ref_hidden = hidden + 0.1 * normal(case.n, case.d)
        ref = -torch.rand(case.n, generator=g, device=device) * 6
    tensors = [t.to(dtype) for t in (hidden, head)]
    tensors[0].requires_grad_()
    tensors[1].requires_grad_(not case.frozen)
    star = torch.rand(case.n, generator=g, device=device)
    return Inputs(
        case, *tensors, labels, star, ref_hidden.to(dtype), tensors[1].detach(), ref, rows_of(case, labels, star)
    )


def prose(tokenizer: Any, n: int) -> Tensor:
    """[n] tokens of Python's language reference, which every Python has."""
    return torch.tensor(tokenizer("\n".join(topics.values()))["input_ids"][:n])


def planes(values: Tensor) -> np.ndarray:
    """[2, ...] the low and the high bytes of ``values``, rounded to bf16. Apart, the high ones compress to a third."""
    return values.bfloat16().contiguous().unsqueeze(-1).view(torch.uint8).movedim(-1, 0).contiguous().numpy()


def from_planes(found: np.ndarray) -> Tensor:
    """The bf16 values of :func:`planes`."""
    return torch.from_numpy(found).movedim(0, -1).contiguous().view(torch.bfloat16).squeeze(-1)


@cache
def smollm2_on_prose(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden [n, 576], head [49152, 576], labels [n]) of SmolLM2-135M-Instruct on :func:`prose`.

    By the model, or where it cannot be had from the file that text_states.py made of it elsewhere.
    """
    try:
        policy = load_policy(None, "cpu", "fp32")
    except RuntimeError as error:
        if not TEXT_STATES.exists():
            raise Unavailable(f"{error}; or make {TEXT_STATES.name} elsewhere by text_states.py") from error
        with np.load(TEXT_STATES) as kept:
            labels = torch.from_numpy(kept["labels"]).long()
            if labels.shape[0] < n:
                raise Unavailable(f"{TEXT_STATES.name} holds {labels.shape[0]} tokens, not {n}") from error
            return from_planes(kept["hidden"])[:n].float(), from_planes(kept["head"]).float(), labels[:n]
    windows = prose(policy.tokenizer, n + n // _WINDOW).view(-1, _WINDOW + 1)
    with torch.no_grad():
        hidden = torch.cat([backbone(policy.model)(window[None, :-1]).last_hidden_state[0] for window in windows])
        return hidden, lm_head(policy.model).weight.detach().clone(), windows[:, 1:].reshape(-1)


def fastdss_loss(x: Inputs, counted: bool = True, grad_tol: float | None = None, backend: str = "auto") -> Tensor:
    options: dict[str, Any] = {"rows": x.rows if counted else None, "grad_tol": grad_tol, "backend": backend}
    if x.case.loss == "ce":
        return weighted_ce(x.hidden, x.head, x.labels, x.star, **options)
    reference: dict[str, Any] = {"ref_logprobs": x.ref_logprobs}
    if x.case.loss == "reverse":
        reference = {"ref_hidden": x.ref_hidden, "ref_lm_head": x.ref_head}
    return dss_loss(x.hidden, x.head, x.labels, x.star, kl=x.case.loss, kl_scale=KL_SCALE, **options, **reference).loss


def fastdss_filtered(x: Inputs, grad_tol: float) -> Tensor:
    if not x.case.text:
        raise Unavailable("random logits leave no column of dZ empty")
    return fastdss_loss(x, grad_tol=grad_tol)


_FUSED = """
import torch
from fastdss import weighted_ce
hidden, head = (torch.randn(n, 512, device="cuda").bfloat16().requires_grad_() for n in (300, 33000))
weighted_ce(hidden, head, torch.arange(300, device="cuda"), backend="fused").backward()
torch.cuda.synchronize()
assert hidden.grad.isfinite().all() and head.grad.isfinite().all()
"""


@cache
def fused_failure() -> str:
    """What went wrong when a process of its own ran the fused product; "" if nothing did. A kernel that reads where it
    must not would take down the process, and with it all that was to be measured there."""
    command = [sys.executable, "-c", _FUSED]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=90)
    except subprocess.TimeoutExpired:
        return "the fused product did not end within 90 s"
    said = done.stderr.strip().splitlines() or ["no word"]
    return f"the fused product fails in a process of its own: {said[-1][:200]}" if done.returncode else ""


def fastdss_fused(x: Inputs) -> Tensor:
    """The Triton product that writes exponentials, where auto takes the vendor's and a pass."""
    if not x.hidden.is_cuda or x.case.loss == "reverse":
        raise Unavailable("the fused product needs a GPU, and a loss that needs no dZ")
    if failure := fused_failure():
        raise Unavailable(failure)
    try:
        return fastdss_loss(x, backend="fused")
    except ValueError as error:
        raise Unavailable(str(error)) from error


def fastdss_counting(x: Inputs) -> Tensor:
    if not x.hidden.is_cuda:
        raise Unavailable("a CPU need not wait for itself")
    return fastdss_loss(x, counted=False)


def full_logits(x: Inputs) -> Tensor:
    """The paper's formulation: full fp32 logits, of both models where the KL sums over the vocabulary."""
    return _full_logits(x, x.star, 1 - x.star)


def full_logits_unweighted(x: Inputs) -> Tensor:
    """What the peers that take no weights compute."""
    return _full_logits(x, torch.ones_like(x.star), torch.ones_like(x.star))


def _full_logits(x: Inputs, ce_weight: Tensor, kl_weight: Tensor) -> Tensor:
    wide = torch.promote_types(x.hidden.dtype, torch.float32)
    log_p = F.linear(x.hidden, x.head).to(wide).log_softmax(-1)
    counts = x.labels != -100
    logp = log_p.gather(1, x.labels.clamp(min=0)[:, None])[:, 0]
    loss = -ce_weight * logp
    if x.case.loss == "k2":
        loss = loss + kl_weight * KL_SCALE * (logp - x.ref_logprobs) ** 2 / 2
    elif x.case.loss == "reverse":
        with torch.no_grad():
            log_q = F.linear(x.ref_hidden, x.ref_head).to(wide).log_softmax(-1)
        loss = loss + kl_weight * KL_SCALE * (log_p.exp() * (log_p - log_q)).sum(-1)
    return torch.where(counts, loss, 0).sum() / counts.sum()


_compiled = torch.compile(full_logits)


def _weighted(x: Inputs, token: Tensor) -> Tensor:
    """The loss around a peer's per-token cross-entropy ``token [N]``, whose weights it only meets in backward."""
    if x.case.loss == "reverse":
        raise Unavailable("no KL over the vocabulary with a weight for each token")
    token = token.float()
    loss = x.star * token
    if x.case.loss == "k2":
        loss = loss + (1 - x.star) * KL_SCALE * (token + x.ref_logprobs) ** 2 / 2
    counts = x.labels != -100
    return torch.where(counts, loss, 0).sum() / counts.sum()


def torch_linear_cross_entropy(x: Inputs) -> Tensor:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable("this torch has no F.linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    return _weighted(x, F.linear_cross_entropy(x.hidden, x.head, x.labels, reduction="none", options=options))


def cut_cross_entropy(x: Inputs) -> Tensor:
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise Unavailable("cut-cross-entropy is not installed") from error
    impl = "cce" if x.hidden.is_cuda else "torch_compile"  # its kernels need a GPU
    return _weighted(x, linear_cross_entropy(x.hidden, x.head, x.labels, reduction="none", impl=impl))


def _liger(x: Inputs) -> Any:
    try:
        from liger_kernel.transformers import functional
    except ImportError as error:
        raise Unavailable("liger-kernel is not installed") from error
    if not x.hidden.is_cuda:
        raise Unavailable("Liger's kernels need a GPU")
    return functional.liger_fused_linear_cross_entropy, functional.liger_fused_linear_jsd


def liger_mean(x: Inputs, chunks: int = 1) -> Tensor:
    """Its fastest path: reduction="mean", gradients made in forward, and no weights."""
    cross_entropy, _ = _liger(x)
    if x.case.loss != "ce":
        raise Unavailable("no KL term")
    options = {"accum_dtype": torch.float32, "chunk_mem_const": chunks}
    found: Tensor = cross_entropy(x.hidden, x.head, x.labels, reduction="mean", **options)
    return found


def liger_jsd_class(x: Inputs) -> Tensor:
    """Cross-entropy and reverse KL in one, as its distillation loss composes them: logits of both models in chunks."""
    _liger(x)
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    if x.case.loss != "reverse":
        raise Unavailable("made for the KL over the vocabulary")
    distill = LigerFusedLinearJSDLoss(weight_hard_loss=1.0, weight_soft_loss=KL_SCALE, beta=1.0)
    found: Tensor = distill(x.hidden, x.head, x.ref_hidden, x.ref_head, x.labels)
    return found


def liger(x: Inputs, chunks: int = 1) -> Tensor:
    """``chunks``: how many times its default slab; dW in fp32, without which its error grows with the chunks."""
    cross_entropy, _ = _liger(x)
    options = {"accum_dtype": torch.float32, "chunk_mem_const": chunks}
    return _weighted(x, cross_entropy(x.hidden, x.head, x.labels, reduction="none", **options))


def liger_composed(x: Inputs, chunks: int = 1) -> Tensor:
    """Cross-entropy and reverse KL as two fused losses. Its divergence takes no weights: here neither has any."""
    cross_entropy, jsd = _liger(x)
    if x.case.loss != "reverse":
        raise Unavailable("made for the KL over the vocabulary")
    options: dict[str, Any] = {"accum_dtype": torch.float32}
    ce = cross_entropy(x.hidden, x.head, x.labels, chunk_mem_const=chunks, **options)
    arguments = (x.hidden, x.head, x.ref_hidden, x.ref_head)
    return ce + KL_SCALE * jsd(*arguments, shift_labels=x.labels, jsd_beta=1.0, **options)


def quack(x: Inputs) -> Tensor:
    try:
        from quack.linear_cross_entropy import chunked_linear_cross_entropy
    except ImportError as error:
        raise Unavailable(f"quack-kernels cannot be imported: {error}") from error
    if x.case.loss != "ce":
        raise Unavailable("no KL term")
    return chunked_linear_cross_entropy(x.hidden, x.head, x.labels, reduction="mean")


LARGE_CHUNKS = 16
METHODS: dict[str, Callable[[Inputs], Tensor]] = {
    "fastdss": fastdss_loss,
    "fastdss, fused product": fastdss_fused,
    "fastdss, counts its rows": fastdss_counting,
    "fastdss, grad_tol=2**-9": partial(fastdss_filtered, grad_tol=2**-9),
    "fastdss, grad_tol=2**-10": partial(fastdss_filtered, grad_tol=2**-10),
    "eager": full_logits,
    "torch.compile": _compiled,
    "F.linear_cross_entropy": torch_linear_cross_entropy,
    "cut-cross-entropy": cut_cross_entropy,
    "liger": liger,
    "liger, large chunks": partial(liger, chunks=LARGE_CHUNKS),
    "liger CE + JSD (unweighted)": liger_composed,
    "liger CE + JSD, large chunks (unweighted)": partial(liger_composed, chunks=LARGE_CHUNKS),
    "liger, mean (unweighted)": liger_mean,
    "liger, mean, large chunks (unweighted)": partial(liger_mean, chunks=LARGE_CHUNKS),
    "liger CE + JSD, its class (unweighted)": liger_jsd_class,
    "quack (unweighted)": quack,
}


def truth_of(name: str) -> Callable[[Inputs], Tensor]:
    """What ``METHODS[name]`` is checked against, in float64."""
    return full_logits_unweighted if "unweighted" in name else full_logits
