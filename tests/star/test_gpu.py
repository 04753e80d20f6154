"""What only a GPU can show of the prefix attention kernel and the engine around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers import GraniteConfig, LlamaConfig
from transformers.models.granite import GraniteForCausalLM
from transformers.models.llama import LlamaForCausalLM

from fastdss import Guard, star_scores
from fastdss.prefix.attention import KVStore, PrefixPlan, attend_in_order, using_prefix_attention
from fastdss.prefix.engine import Runner, reference_logits, tree_logits
from fastdss.prefix.flash_attention import attend_by_flash
from fastdss.prefix.packed_attention import attend_by_kernel, attend_packed
from fastdss.prefix.packing import Segment
from fastdss.prefix.tree import PrefixTree, build_tree
from tests.support.builders import ARCHITECTURES, BATCH, make_guard

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device; there is none here"),
]
DEVICE = "cuda"
KERNEL = "triton"
VERDICTS = [3, 5]


@pytest.fixture(autouse=True)
def exact_fp32_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_device(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Guard:
    guard = make_guard(architecture, dtype=dtype)
    guard.model.to(DEVICE)
    return guard


def flat(guard: Guard, backend: str, **options) -> Tensor:
    return torch.cat(star_scores(guard, BATCH, every=2, backend=backend, **options).scores)


def naive(guard: Guard) -> Tensor:
    return flat(guard, "torch", method="per_prefix")


@pytest.mark.parametrize("backend", ["torch", KERNEL])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp32_scores_equal_one_forward_per_prefix(architecture: str, backend: str) -> None:
    guard = on_device(architecture)
    assert (flat(guard, backend) - naive(guard)).abs().max() <= 1e-6


def test_auto_is_the_kernel_here() -> None:
    guard = on_device()
    assert torch.equal(flat(guard, "auto"), flat(guard, KERNEL))
    assert not torch.equal(flat(guard, "auto"), flat(guard, "tree"))


@pytest.mark.parametrize("backend", ["torch", KERNEL])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_scores_are_as_good_as_the_naive_ways(architecture: str, backend: str) -> None:
    """Within twice what bf16 costs one forward per prefix."""
    truth = naive(on_device(architecture))
    guard = on_device(architecture, torch.bfloat16)
    noise = (naive(guard) - truth).abs().max()
    assert (flat(guard, backend) - truth).abs().max() <= 2 * noise


@pytest.mark.parametrize("architecture", ["llama", "granite", "qwen3"])
def test_bf16_scores_by_flash_attn_are_as_good_as_the_naive_ways(architecture: str) -> None:
    truth = naive(on_device(architecture))
    guard = on_device(architecture, torch.bfloat16)
    noise = (naive(guard) - truth).abs().max()
    assert (flat(guard, "flash", budget=150) - truth).abs().max() <= 2 * noise


def test_many_streams_equal_single_ones() -> None:
    guard = on_device()
    batch = star_scores(guard, BATCH, every=2, backend=KERNEL)
    streams = guard.streams()
    opened = [streams.open(prompt, every=2) for prompt in BATCH["prompt"]]
    for left in range(0, max(map(len, BATCH["response"])), 9):
        streams.append({s: text[left : left + 9] for s, text in zip(opened, BATCH["response"], strict=True)})
    streams.append({}, ended=opened)
    for stream, expected in zip(opened, batch.scores, strict=True):
        assert torch.allclose(torch.tensor(stream.scores), expected, rtol=0, atol=1e-6)


def random_trees(count: int, size: int, tail: int, vocabulary: int) -> list[PrefixTree]:
    """One head for all, a response that grows by seven tokens, a tail after each prefix."""
    draw = torch.Generator().manual_seed(0)
    head, end = (torch.randint(0, vocabulary, (n,), generator=draw).tolist() for n in (203, tail))
    texts = [torch.randint(0, vocabulary, (size,), generator=draw).tolist() for _ in range(count)]
    return [build_tree([head + text[:cut] + end for cut in range(7, size + 1, 7)]) for text in texts]


REAL = {
    "granite 2b, two layers": lambda: GraniteForCausalLM(
        GraniteConfig(
            hidden_size=2048, intermediate_size=8192, num_hidden_layers=2, num_attention_heads=32,
            num_key_value_heads=8, vocab_size=49152, logits_scaling=8.0, attention_multiplier=1 / 64)
    ),
    "llama guard 8b, two layers": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=4096, intermediate_size=14336, num_hidden_layers=2, num_attention_heads=32,
            num_key_value_heads=8, vocab_size=128256)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_shapes_in_micro_batches_of_thousands(name: str) -> None:
    """bf16 within twice the noise of one forward per prefix; the trees share one head and fill several batches."""
    torch.manual_seed(0)
    model = REAL[name]().to(DEVICE).eval()
    trees = random_trees(6, 280, 68, model.config.vocab_size)
    renderings = [tree.rendering(k) for tree in trees for k in range(tree.num_prefixes)]
    truth = reference_logits(model, VERDICTS, renderings).softmax(-1)[:, 0]
    model.to(torch.bfloat16)
    noise = (reference_logits(model, VERDICTS, renderings).softmax(-1)[:, 0] - truth).abs().max()
    for attend in (attend_in_order, attend_by_kernel if KERNEL == "triton" else attend_packed):
        logits = tree_logits(model, VERDICTS, trees, list(range(6)), budget=4096, attend=attend)
        assert (logits.softmax(-1)[:, 0] - truth).abs().max() <= 2 * noise


def micro_batch(dtype: torch.dtype, dim: int = 128) -> tuple[list[Segment], list[Tensor], Callable[[], KVStore]]:
    """A trunk of 900 tokens in a poisoned store, then 60 branches of 68 tokens at descending starts."""
    torch.manual_seed(0)
    segments = [Segment(0, 840 - 7 * k, [0] * 68) for k in range(60)]
    new = [torch.randn(1, 60 * 68, heads, dim, device=DEVICE).to(dtype).transpose(1, 2) for heads in (32, 8, 8)]
    kept = torch.randn(2, 8, 900, dim, device=DEVICE).to(dtype)

    def store() -> KVStore:
        made = KVStore(1100)
        for target, source in zip(made.layer(0, new[1], new[2]), kept, strict=True):
            target.fill_(torch.nan)  # what nobody wrote must reach nobody
            target[:, :900] = source
        return made

    return segments, new, store


def attended(attend: Callable[..., Tensor], dtype: torch.dtype, dim: int = 128, **options) -> Tensor:
    segments, new, store = micro_batch(torch.bfloat16, dim)
    made = store()
    made.layers[0] = tuple(x.to(dtype) for x in made.layers[0])
    plan = PrefixPlan(segments, made, attend, {})
    return attend(plan, 0, *(x.to(dtype) for x in new), dim**-0.5, options.get("window"), options.get("softcap"))


@pytest.mark.parametrize("options", [{}, {"window": 300}, {"softcap": 30.0}], ids=str)
@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_attention_of_a_large_micro_batch(dim: int, options: dict) -> None:
    """bf16, against float64 on the same inputs: at most twice the loop's own error."""
    truth = attended(attend_in_order, torch.float64, dim, **options)
    own = (attended(attend_in_order, torch.bfloat16, dim, **options) - truth).abs().max()
    assert (attended(attend_packed, torch.bfloat16, dim, **options) - truth).abs().max() <= 2 * own
    if not options:
        assert (attended(attend_by_flash, torch.bfloat16, dim) - truth).abs().max() <= 2 * own


def test_reruns_are_bitwise_equal() -> None:
    first = attended(attend_packed, torch.bfloat16)
    for _ in range(100):
        assert torch.equal(attended(attend_packed, torch.bfloat16), first)


def test_layers_after_the_first_wait_for_nothing() -> None:
    """The first layer of a micro-batch sends its arrays, the others find them there."""
    segments, new, store = micro_batch(torch.bfloat16)
    made, more = store(), store()
    made.layers[1] = more.layers[0]
    plan = PrefixPlan(segments, made, attend_packed, {})
    for layer in (0, 1):
        attend_packed(plan, layer, *new, 128**-0.5, None, None)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend_packed(plan, 1, *new, 128**-0.5, None, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_micro_batch_is_launched_without_waiting() -> None:
    """The whole forward, its arrays and its verdict rows: only fetching the logits waits."""
    guard = on_device()
    runner, store = Runner(guard.model, guard.token_ids, attend_packed), KVStore(400)
    segments = [Segment(0, 0, list(range(5, 300)), [(294, 0)]), Segment(0, 200, list(range(5, 60)), [(54, 1)])]
    with using_prefix_attention(guard.model):
        runner.run(segments, store)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            logits, scores = runner.run(segments, store)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert scores == [0, 1]
    assert torch.isfinite(logits).all()


def test_what_a_guard_keeps_follows_its_model() -> None:
    guard = on_device()
    before = flat(guard, KERNEL)
    with torch.no_grad():
        guard.model.model.layers[0].self_attn.k_proj.weight.mul_(1.5)
    after = flat(guard, KERNEL)
    assert (after - before).abs().max() > 1e-4
    assert (after - naive(guard)).abs().max() <= 1e-6


def test_a_stream_equals_the_batch() -> None:
    guard = on_device()
    batch = star_scores(guard, BATCH, every=2, backend=KERNEL)
    for i, (prompt, response) in enumerate(zip(*BATCH.values(), strict=True)):
        stream = guard.stream(prompt, every=2)
        streamed = stream.append(response) + stream.close()
        assert torch.allclose(torch.tensor(streamed), batch.scores[i], rtol=0, atol=1e-6)


def test_too_little_memory_means_smaller_batches() -> None:
    """Half of what the first micro-batch needs: the budget is halved until it fits, the scores stay."""
    guard = on_device()
    expected = flat(guard, KERNEL)
    free = torch.cuda.mem_get_info()[0]
    ballast = torch.empty(max(0, free - (256 << 20)), dtype=torch.int8, device=DEVICE)
    batch = {"prompt": ["Hello"], "response": ["call her later today. " * 200]}
    crowded = star_scores(guard, batch, every=10, backend=KERNEL, max_tokens=1000)
    del ballast
    roomy = star_scores(guard, batch, every=10, backend=KERNEL, max_tokens=1000)
    assert torch.allclose(crowded.scores[0], roomy.scores[0], rtol=0, atol=1e-6)
    assert (flat(guard, KERNEL) - expected).abs().max() <= 1e-6
