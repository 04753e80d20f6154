"""What only a GPU can show: the compiled kernels at real sizes, no hidden synchronisation, CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastdss import dss_loss, token_logprobs, weighted_ce
from fastdss.loss.functional import live_rows
from tests.support.loss_cases import KLS, Problem, make_problem, run, truth
from tests.support.numerics import assert_gradient_close, assert_tokens_close

from .test_column_filter import error, spoken
from .test_main_grad import accumulate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device; there is none here"),
]


def on_gpu(problem: Problem) -> Problem:
    return Problem(**{name: tensor.cuda() for name, tensor in vars(problem).items()})


@pytest.mark.parametrize("kl", KLS)
@pytest.mark.parametrize("vocabulary", [32000, 128256, 151936, 262144])
def test_real_vocabularies(kl: str, vocabulary: int) -> None:
    """bf16 gradients within 1.25 x a cast, tokens as in fp32: logits never pass through 16 bit."""
    problem = on_gpu(make_problem(33, 64, vocabulary, torch.bfloat16))
    actual, expected = run(problem, kl), truth(problem, kl)
    for field in ("token_ce", "token_kl"):
        value, true = getattr(actual.loss, field), getattr(expected.loss, field)
        assert_tokens_close(value, true, precision=torch.bfloat16, name=field)
    for field in ("d_hidden", "d_head"):
        assert_gradient_close(getattr(actual, field), getattr(expected, field), precision=torch.bfloat16, name=field)


def _has_fused() -> bool:
    from fastdss.kernels.configs import HEAD_EXPONENTIALS_BY_DEFAULT
    from fastdss.kernels.head_exponentials import head_architecture

    return head_architecture(torch.device("cuda")) in HEAD_EXPONENTIALS_BY_DEFAULT


# Rows and words of several tiles and a rest, hidden dimensions of several and a rest; Gemma's softcap; labels 80 nats
# below the largest logit, whose rows run again.
@pytest.mark.parametrize(("n", "d", "v"), [(33, 64, 32000), (700, 328, 128256), (300, 256, 151936)])
@pytest.mark.parametrize(("softcap", "gap"), [(None, 0.0), (30.0, 0.0), (None, 80.0)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_product_that_writes_exponentials(
    n: int, d: int, v: int, softcap: float | None, gap: float, reduction: str
) -> None:
    if not _has_fused():
        pytest.skip("this chip has no configuration of the fused product")
    host = make_problem(n, d, v, torch.bfloat16)
    rows = host.lm_head[host.labels.clamp(min=0)].float()
    host.hidden[::64] -= (gap * rows / rows.square().sum(1, keepdim=True)).bfloat16()[::64]
    problem = on_gpu(host)
    upstream = torch.linspace(-1, 2, n, device="cuda") if reduction == "none" else None
    options = {"softcap": softcap, "reduction": reduction}
    actual = run(problem, "k2", upstream, backend="fused", **options)
    expected = truth(problem, "k2", upstream=upstream, **options)
    assert_tokens_close(actual.loss.token_ce, expected.loss.token_ce, precision=torch.bfloat16, name="token_ce")
    for field in ("d_hidden", "d_head"):
        assert_gradient_close(getattr(actual, field), getattr(expected, field), precision=torch.bfloat16, name=field)
    again = run(problem, "k2", upstream, backend="fused", **options)
    assert torch.equal(again.loss.token_ce, actual.loss.token_ce)


@pytest.mark.parametrize("kl", ["k2", "reverse"])
def test_filtered_columns(kl: str) -> None:
    problem = on_gpu(spoken(dtype=torch.bfloat16))
    actual, expected = run(problem, kl, grad_tol=2**-10), truth(problem, kl)
    for field in ("d_hidden", "d_head"):
        assert error(getattr(actual, field), getattr(expected, field)) < 2e-3 + 2 * torch.finfo(torch.bfloat16).eps


def test_more_than_two_to_the_31_logits_in_one_slab() -> None:
    n, d, v = 8448, 16, 262144
    torch.manual_seed(0)
    hidden, head = torch.randn(n, d, device="cuda"), torch.randn(v, d, device="cuda")
    labels = torch.randint(0, v, (n,), device="cuda")
    logp = token_logprobs(hidden, head, labels, chunk_bytes=n * v * 4)
    last = torch.log_softmax(hidden[-3:].double() @ head.double().T, 1).gather(1, labels[-3:, None])[:, 0]
    assert_tokens_close(logp[-3:], last, precision=torch.float32)


@pytest.mark.parametrize("kl", ["k2", "reverse"])
def test_micro_batches_add_up_in_main_grad(kl: str) -> None:
    """Here dZ is bf16 and only its sums are fp32: the rule for 16-bit gradients, over several chunks a micro-batch."""
    problem = on_gpu(make_problem(33, 64, 32000, torch.bfloat16))
    main_grad = torch.zeros(32000, 64, device="cuda")
    accumulate(problem, kl, main_grad, chunk_bytes=4 * 32000 * 8)
    assert_gradient_close(main_grad, truth(problem, kl).d_head, precision=torch.bfloat16)


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kl", ["k2", "reverse"])
def test_rows_from_the_host_mean_no_synchronisation(kl: str, no_synchronisation: None) -> None:
    torch.cuda.set_sync_debug_mode("default")
    host = make_problem(64, 32, 500, torch.bfloat16)
    live = live_rows(host.labels, host.star, kl_scale=0.5).to("cuda")
    problem = on_gpu(host)
    run(problem, kl, rows=live)  # compile the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    run(problem, kl, rows=live)
    with pytest.raises(RuntimeError, match="synchroniz"):
        run(problem, kl)  # the inverse: counting rows does wait


@pytest.mark.parametrize("backend", ["triton", "fused"])
def test_a_cuda_graph_replays_on_new_values(backend: Any) -> None:
    if backend == "fused" and not _has_fused():
        pytest.skip("this chip has no configuration of the fused product")
    problem = on_gpu(make_problem(64, 32, 500, torch.bfloat16))
    hidden, head = problem.hidden.requires_grad_(), problem.lm_head.requires_grad_()

    def step() -> torch.Tensor:
        given = {"ref_logprobs": problem.ref_logprobs, "compact": False, "backend": backend}
        loss = dss_loss(hidden, head, problem.labels, problem.star, **given)
        return torch.autograd.grad(loss.loss, head)[0]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        hidden.mul_(0.5)
    graph.replay()
    assert torch.equal(captured, step())


def test_a_thousand_reruns_are_bitwise_equal() -> None:
    problem = on_gpu(make_problem(33, 64, 32000, torch.bfloat16))
    labels = torch.arange(33, device="cuda")  # each label once: the order of additions at its row is then fixed
    first = weighted_ce(problem.hidden, problem.lm_head.requires_grad_(), labels, problem.star)
    gradient = torch.autograd.grad(first, problem.lm_head)[0]
    for _ in range(1000):
        again = weighted_ce(problem.hidden, problem.lm_head, labels, problem.star)
        assert torch.equal(torch.autograd.grad(again, problem.lm_head)[0], gradient)


def test_grad_tol_where_algorithms_must_be_deterministic() -> None:
    """CUDA's cumsum of floats is refused there."""
    problem = on_gpu(make_problem(64, 32, 4000, torch.bfloat16))
    leaves = problem.hidden.requires_grad_(), problem.lm_head.requires_grad_()
    torch.use_deterministic_algorithms(True, warn_only=True)  # cuBLAS would need a setting before the process begins
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = torch.autograd.grad(weighted_ce(*leaves, problem.labels, grad_tol=0.1), leaves)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(gradient.isfinite().all() for gradient in found)
    assert not [str(one.message) for one in said if "does not have a deterministic implementation" in str(one.message)]
