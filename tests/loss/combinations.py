"""Every pair of options together in at least one call, against float64: what meets only there cannot hide."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdss import dss_loss
from fastdss.loss.functional import live_rows
from tests.support.loss_cases import KLS, Problem, check_values, make_problem, truth
from tests.support.numerics import assert_gradient_close

N, D, V = 13, 8, 24
Case = dict[str, Any]
OPTIONS: dict[str, tuple[Any, ...]] = {
    "kl": tuple(KLS),
    "reference": ("logprobs", "hidden", "hidden and bias"),  # sums over the vocabulary: always hidden
    "reduction": ("mean", "sum", "none"),
    "num_items_in_batch": (None, 5, torch.tensor(7)),  # of a mean
    "rows": ("found", "live", "all"),
    "frozen": ("nothing", "head", "hidden"),
    "bias": (True, False),
    "main_grad": (False, True),  # of a head that is trained
    "chunk_bytes": (None, 8 * 32 * 3),
    "label_smoothing": (0.0, 0.1),
    "z_loss": (0.0, 1e-3),
    "softcap": (None, 8.0),
    "logit_scale": (1.0, 0.7),
    "own ref_softcap": (False, True),
    "own ref_logit_scale": (False, True),
    "kl_scale": (0.5, 0.0, 2.0),
    "token_stats": (False, True),
}


def pairs_of(case: Case) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    places = [(name, OPTIONS[name].index(value)) for name, value in case.items()]
    return set(itertools.combinations(places, 2))


def covering_cases() -> list[Case]:
    """Greedy: each case begins with a pair that is missing, and each further option takes what meets most of them."""
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(OPTIONS, 2)
        for i in range(len(OPTIONS[a]))
        for j in range(len(OPTIONS[b]))
    }
    cases = []
    while missing:
        chosen = dict(min(missing))
        for name in OPTIONS:
            if name not in chosen:
                gains = [
                    sum(tuple(sorted(((name, i), other), key=_place)) in missing for other in chosen.items())
                    for i in range(len(OPTIONS[name]))
                ]
                chosen[name] = gains.index(max(gains))
        case = {name: OPTIONS[name][chosen[name]] for name in OPTIONS}
        missing -= pairs_of(case)
        cases.append(case)
    return cases


def _place(option: tuple[str, int]) -> int:
    return list(OPTIONS).index(option[0])


def check(
    case: Case, *, backend: str = "torch", group: Any = None, rank: int = 0, ranks: int = 1, **further: Any
) -> None:
    """One call against its definition; with ``group`` on this rank's slice of the vocabulary."""
    p = make_problem(N, D, V, torch.float64)
    p = replace(p, star=p.star.double(), ref_logprobs=p.ref_logprobs.double())
    if not case["bias"]:
        p = replace(p, bias=torch.zeros_like(p.bias))
    mine = slice(rank * V // ranks, (rank + 1) * V // ranks)
    objective, options = _arguments(case, p)
    given, p = _reference(case, p, objective, mine)
    leaves = [t.clone() for t in (p.hidden, p.lm_head[mine], p.bias[mine])]
    trained = [case["frozen"] != "hidden", case["frozen"] != "head", bool(case["bias"])]
    for leaf, wanted in zip(leaves, trained, strict=True):
        leaf.requires_grad_(wanted)
    main_grad = torch.zeros_like(leaves[1]) if case["main_grad"] and trained[1] else None
    loss = dss_loss(
        *leaves[:2], p.labels, p.star, bias=leaves[2] if case["bias"] else None, kl=case["kl"], backend=backend,
        group=group, main_grad=main_grad, **given, **options, **objective, **further,
    )  # fmt: skip
    upstream = torch.linspace(-1, 2, N).double() if case["reduction"] == "none" else torch.tensor(1.5).double()
    loss.loss.backward(upstream)
    same = {name: options[name] for name in ("reduction", "num_items_in_batch", "kl_scale")}
    expected = truth(p, case["kl"], upstream=upstream, **same, **objective)
    assert (loss.token_entropy is not None) == case["token_stats"]
    check_values(loss, expected.loss, precision=torch.float64)
    got = [leaves[0].grad, leaves[1].grad if main_grad is None else main_grad, leaves[2].grad]
    whole = [expected.d_hidden, expected.d_head[mine], expected.d_bias[mine]]
    for gradient, true, wanted in zip(got, whole, trained, strict=True):
        assert (gradient is not None) == wanted
        if gradient is not None:
            assert_gradient_close(gradient, true, precision=torch.float64)


def _arguments(case: Case, p: Problem) -> tuple[Case, Case]:
    """(what the loss is, how it is computed and reduced)"""
    objective = {name: case[name] for name in ("label_smoothing", "z_loss", "softcap", "logit_scale")}
    objective["ref_softcap"] = 5.0 if case["own ref_softcap"] else case["softcap"]
    objective["ref_logit_scale"] = 1.3 if case["own ref_logit_scale"] else case["logit_scale"]
    options = {name: case[name] for name in ("reduction", "kl_scale", "chunk_bytes", "token_stats")}
    options["num_items_in_batch"] = case["num_items_in_batch"] if case["reduction"] == "mean" else None
    if case["rows"] == "live":
        options["rows"] = live_rows(p.labels, p.star, kl_scale=case["kl_scale"])
    options["compact"] = case["rows"] != "all"
    return objective, options


def _reference(case: Case, p: Problem, objective: Case, mine: slice) -> tuple[dict[str, Tensor], Problem]:
    """The arguments, and the problem whose truth has this reference: its bias as one more column of the head."""
    full = case["kl"] in ("reverse", "forward")
    if case["reference"] == "logprobs" and not full:
        return {"ref_logprobs": p.ref_logprobs}, p
    given = {"ref_hidden": p.ref_hidden, "ref_lm_head": p.ref_lm_head[mine]}
    raw = p.ref_hidden @ p.ref_lm_head.T
    if case["reference"] == "hidden and bias":
        bias = torch.linspace(-1, 1, V).double()
        given["ref_bias"], raw = bias[mine], raw + bias
        ones = torch.ones(N, 1).double()
        p = replace(p, ref_hidden=torch.cat([p.ref_hidden, ones], 1),
                    ref_lm_head=torch.cat([p.ref_lm_head, bias[:, None]], 1))  # fmt: skip
    z, cap = raw * objective["ref_logit_scale"], objective["ref_softcap"]
    z = z if cap is None else cap * torch.tanh(z / cap)
    logprobs = torch.log_softmax(z, 1).gather(1, p.labels.clamp(min=0)[:, None])[:, 0]
    return given, replace(p, ref_logprobs=logprobs)
