"""Which results are the same bits whatever chunk, company, packing or threads, and how far the others may move."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastdss import DSSCollator, StarScores, pack, star_scores
from tests.support.builders import BATCH, make_guard
from tests.support.loss_cases import KLS, Outcome, make_problem, run


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bits(outcome: Outcome) -> list[torch.Tensor]:
    return [*(t.detach() for t in outcome.loss if t is not None), outcome.d_hidden, outcome.d_head, outcome.d_bias]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def moved(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reruns_are_the_same_bits(kl: str, dtype: torch.dtype) -> None:
    problem = make_problem(40, 24, 130, dtype)
    first = bits(run(problem, kl, chunk_bytes=9000))
    for _ in range(3):
        assert same(first, bits(run(problem, kl, chunk_bytes=9000)))


@pytest.mark.parametrize("kl", KLS)
def test_chunks_move_sums_by_roundings_only(kl: str) -> None:
    """Promised: nothing but the order of fp32 sums. Terms of a token and dX come from one row; dW sums over chunks."""
    problem = make_problem(64, 32, 500, torch.float32)
    whole = run(problem, kl)
    for size in (4 * 512 * 2, 4 * 512 * 7, 4 * 512 * 33):
        part = run(problem, kl, chunk_bytes=size)
        assert (part.loss.token_ce - whole.loss.token_ce).abs().max() <= 1e-5
        for name in ("d_hidden", "d_head", "d_bias"):
            assert moved(getattr(part, name), getattr(whole, name)) <= 2e-6, name


def test_dead_rows_leave_the_others_bits_alone() -> None:
    """Rows without weight are taken out before the first product, so what they hold cannot move a bit."""
    problem = make_problem(40, 24, 130, torch.float32)
    star = problem.star.clone()
    star[::3] = 1.0
    problem = replace(problem, star=star, labels=problem.labels.index_fill(0, torch.arange(0, 40, 5), -100))
    other = replace(problem, hidden=problem.hidden.clone())
    other.hidden[problem.labels == -100] = 1e30
    first, second = run(problem, "k2"), run(other, "k2")
    live = problem.labels != -100
    assert same(bits(first)[:5], bits(second)[:5])
    assert torch.equal(first.d_head, second.d_head)
    assert torch.equal(first.d_hidden[live], second.d_hidden[live])


@pytest.mark.usefixtures("threads")
def test_thread_counts_move_sums_by_roundings_only() -> None:
    problem = make_problem(64, 64, 2000, torch.float32)
    found = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        found.append(run(problem, "reverse"))
    for other in found[1:]:
        assert (other.loss.token_ce - found[0].loss.token_ce).abs().max() <= 1e-5
        for name in ("d_hidden", "d_head", "d_bias"):
            assert moved(getattr(other, name), getattr(found[0], name)) <= 2e-6, name


def furthest(a: StarScores, b: StarScores, order: list[int] | None = None) -> float:
    pairs = zip(a.scores, (b.scores[i] for i in order or range(len(b))), strict=True)
    return max((x - y).abs().max().item() for x, y in pairs)


def test_scores_again_are_the_same_bits() -> None:
    """The same call on the same machine, also through another guard object of the same weights."""
    guard = make_guard()
    first = star_scores(guard, BATCH, gemm="default")
    star_scores(guard, {"prompt": ["Other"], "response": ["company before it"]}, gemm="default")
    for judge in (guard, make_guard()):
        again = star_scores(judge, BATCH, gemm="default")
        assert all(torch.equal(a, b) for a, b in zip(first.scores, again.scores, strict=True))


@pytest.mark.parametrize(
    "options", [{"budget": 1}, {"budget": 17}, {"budget": 4000}, {"gemm": "onednn"}, {"method": "per_prefix"}], ids=str
)
def test_packing_moves_scores_by_roundings_only(options: dict[str, Any]) -> None:
    """Not the same bits: a GEMM sums in an order that depends on how many rows it has. Below 1e-6 in fp32."""
    guard = make_guard()
    assert furthest(star_scores(guard, BATCH, **options), star_scores(guard, BATCH, gemm="default")) <= 1e-6


def test_company_and_order_move_scores_by_roundings_only() -> None:
    guard = make_guard()
    together = star_scores(guard, BATCH, gemm="default")
    order = [3, 1, 0, 2]
    shuffled = star_scores(guard, {k: [v[i] for i in order] for k, v in BATCH.items()}, gemm="default")
    assert furthest(shuffled, together, order) <= 1e-6
    for i in range(4):
        alone = star_scores(guard, {k: [v[i]] for k, v in BATCH.items()}, gemm="default")
        assert (alone.scores[0] - together.scores[i]).abs().max() <= 1e-6


@pytest.mark.usefixtures("threads")
def test_thread_counts_move_scores_by_roundings_only() -> None:
    """The same bytes are promised for the same number of threads, which divide a product's sums among them."""
    guard = make_guard()
    found = []
    for count in (1, 2, 4, 1):
        torch.set_num_threads(count)
        found.append(star_scores(guard, BATCH, gemm="default"))
    assert all(furthest(other, found[0]) <= 1e-6 for other in found)
    assert furthest(found[3], found[0]) == 0


@pytest.mark.usefixtures("threads")
def test_weights_are_the_same_bits_whatever_the_batch() -> None:
    """Alignment is arithmetic on integers: a row's ids, labels and weights do not depend on its company."""
    guard = make_guard()
    scores = star_scores(guard, BATCH, gemm="default")
    together = scores.token_weights(guard.tokenizer)
    for i in range(4):
        assert scores[i : i + 1].token_weights(guard.tokenizer)[0] == together[i]
    padded = DSSCollator(0)(list(together))
    packed = DSSCollator(0, padding_free=True)(list(pack(list(together), 4096)))
    weights = padded["token_weights"][padded["labels"] != -100]
    assert torch.equal(weights.sort().values, packed["token_weights"][packed["labels"] != -100].sort().values)


def test_the_check_would_see_a_flipped_bit() -> None:
    problem = make_problem(9, 6, 11, torch.float32)
    outcome = run(problem, "k2")
    other = [t.clone() for t in bits(outcome)]
    other[-2].view(torch.int32)[0, 0] ^= 1
    assert not same(bits(outcome), other)


SCORED = """
import hashlib, sys, threading
from fastdss import Guard, star_scores
if sys.argv[1] == "busy":
    def spin():
        while True:
            sum(range(1000))
    threading.Thread(target=spin, daemon=True).start()
text = "Ring the bell first and be polite. His phone number is 555-0147 and he lives alone. " * 12
batch = {"prompt": ["How do I reach my neighbour?"] * 2, "response": [text, text[:300]]}
scores = star_scores(Guard.tiny(), batch, every=2).scores
print(sum(map(len, scores)), hashlib.sha256(b"".join(s.numpy().tobytes() for s in scores)).hexdigest())
"""


@pytest.mark.long
def test_processes_give_the_same_bytes_whatever_runs_beside_them() -> None:
    """What multiplies is chosen by the kind of processor: a stopwatch would choose otherwise on a busy machine."""
    found = set()
    for load in ("idle", "busy", "idle"):
        command = [sys.executable, "-c", SCORED, load]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        found.add(done.stdout)
    assert len(found) == 1
    assert int(found.pop().split()[0]) > 80
