"""Scores through the prefix tree equal one forward per prefix, on every architecture and tokenizer."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

import fastdss.prefix.engine
from fastdss import star_scores
from fastdss.prefix.engine import reference_logits, tree_logits
from fastdss.prefix.packing import Segment
from fastdss.prefix.tree import build_tree
from tests.support.builders import ARCHITECTURES, BATCH, TOKENIZERS, make_guard, spread


def differences(guard, batch=BATCH, **options) -> float:
    tree = star_scores(guard, batch, method="tree", **options)  # "auto" would check a guard before
    naive = star_scores(guard, batch, method="per_prefix", **options)
    assert tree.ends == naive.ends
    assert spread(naive.scores) > 1e-2
    return max((a - b).abs().max().item() for a, b in zip(tree.scores, naive.scores, strict=True))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("unit", ["word", "token"])
def test_fp32_scores_equal_one_forward_per_prefix(architecture, kind, unit):
    every = 3 if unit == "word" else 4
    assert differences(make_guard(architecture, kind), every=every, unit=unit) <= 1e-6


@pytest.mark.parametrize("kind", ["llama3", "unsplit"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fp64_logits_equal_a_dense_fp64_forward(architecture, kind):
    """Own fp64 attention for the oracle: eager attention of some models rounds its softmax to fp32."""
    guard = make_guard(architecture, kind, torch.float64)
    rows = []
    for prompt, response in zip(*BATCH.values(), strict=True):
        ends = [end for end in range(2, len(response), 5) if response[end - 1].strip()]
        rows.append(guard.encode_prefixes([{"role": "user", "content": prompt}], response, ends))
    guard.model.set_attn_implementation("fastdss_test_dense")
    logits = {
        "tree": tree_logits(guard.model, guard.token_ids, [build_tree(row) for row in rows], [0, 1, 1, 2]),
        "reference": reference_logits(guard.model, guard.token_ids, list(chain.from_iterable(rows))),
    }
    scores = {impl: guard.scores(values) for impl, values in logits.items()}
    assert scores["tree"].dtype == torch.float64
    assert (scores["tree"] - scores["reference"]).abs().max().item() <= 1e-12


@pytest.mark.parametrize("budget", [1, 7, 64, 5000])
def test_scores_do_not_depend_on_the_packing_budget(budget):
    """1 token per forward, pieces smaller than a branch, several branches, everything at once."""
    guard = make_guard("gemma2")
    whole = star_scores(guard, BATCH)
    packed = star_scores(guard, BATCH, budget=budget)
    for a, b in zip(whole.scores, packed.scores, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_scores_do_not_depend_on_order_or_company():
    guard = make_guard("mistral")
    together = star_scores(guard, BATCH)
    order = [2, 0, 3, 1]
    shuffled = star_scores(guard, {name: [BATCH[name][i] for i in order] for name in BATCH})
    for place, i in enumerate(order):
        alone = star_scores(guard, {name: [BATCH[name][i]] for name in BATCH})
        assert torch.allclose(shuffled.scores[place], together.scores[i], rtol=0, atol=1e-6)
        assert torch.allclose(alone.scores[0], together.scores[i], rtol=0, atol=1e-6)


def test_many_groups_and_equal_prompts(monkeypatch):
    """A small store makes several groups of slots; the repeated prompt is computed once inside a group."""
    guard = make_guard()
    batch = {"prompt": BATCH["prompt"][1:2] * 4, "response": BATCH["response"]}
    trees = [
        build_tree(guard.encode_prefixes([{"role": "user", "content": p}], r, [2, 9, 20][: 3 if len(r) > 20 else 1]))
        for p, r in zip(*batch.values(), strict=True)
    ]
    renderings = [tree.rendering(k) for tree in trees for k in range(tree.num_prefixes)]
    expected = reference_logits(guard.model, guard.token_ids, renderings)
    computed = []
    run = fastdss.prefix.engine.Runner.run
    monkeypatch.setattr(
        fastdss.prefix.engine.Runner,
        "run",
        lambda self, segments, store: computed.append(sum(len(s.ids) for s in segments)) or run(self, segments, store),
    )
    tokens = []
    for store_tokens in (1, 200, 10_000):
        computed.clear()
        logits = tree_logits(guard.model, guard.token_ids, trees, [0] * 4, store_tokens=store_tokens)
        assert torch.allclose(logits, expected, rtol=0, atol=1e-5)
        tokens.append(sum(computed))
    assert tokens[2] <= tokens[0] <= sum(tree.num_tokens for tree in trees)


def test_memory_of_the_store_does_not_grow_with_boundaries(monkeypatch):
    guard = make_guard()
    stores = []
    monkeypatch.setattr(
        fastdss.prefix.engine, "KVStore", lambda n: stores.append(n) or fastdss.prefix.attention.KVStore(n)
    )
    sizes = []
    for every in (20, 20, 1):
        stores.clear()
        star_scores(guard, {"prompt": ["Hello"], "response": ["word " * 60]}, every=every)
        sizes.append(list(stores))
    assert sizes[1] == sizes[2]  # once the guard keeps its head


def test_out_of_memory_halves_the_budget_and_keeps_the_scores(monkeypatch):
    guard = make_guard()
    expected = star_scores(guard, BATCH)
    run = fastdss.prefix.engine.Runner.run
    sizes = []

    def tight(self, segments, store):
        sizes.append(sum(len(segment.ids) for segment in segments))
        if sizes[-1] > 60:
            raise torch.OutOfMemoryError("a small device")
        return run(self, segments, store)

    monkeypatch.setattr(fastdss.prefix.engine.Runner, "run", tight)
    scores = star_scores(guard, BATCH, budget=400)
    assert max(sizes) > 60 >= sizes[-1]
    for a, b in zip(scores.scores, expected.scores, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


MANY = {  # prompts apart and alike, lengths from one to four sentences
    "prompt": ["Hello there."] * 8 + [f"Number {i}?" for i in range(16)],
    "response": ["You can call her. Mail anna, or not at all. " * (1 + i % 4) for i in range(24)],
}
NO_ROOM = [
    torch.OutOfMemoryError("a small device"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 8"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def scores_while(monkeypatch, error: Exception, fails, **options) -> tuple[list[torch.Tensor], list[int]]:
    """Scores of ``MANY`` where forward number n of that size and store raises if ``fails``, and all sizes."""
    guard, run, sizes = make_guard(check=False), fastdss.prefix.engine.Runner.run, []

    def tight(self, segments, store):
        sizes.append(sum(len(segment.ids) for segment in segments))
        if fails(len(sizes), sizes[-1], store.capacity):
            raise error
        return run(self, segments, store)

    with monkeypatch.context() as patched:
        patched.setattr(fastdss.prefix.engine.Runner, "run", tight)
        return star_scores(guard, MANY, every=4, method="tree", **options).scores, sizes


def same(scores: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(scores, expected, strict=True))


@pytest.mark.parametrize("error", NO_ROOM, ids=lambda error: str(error)[-20:])
def test_out_of_memory_is_known_by_its_many_names(monkeypatch, error):
    _, sizes = scores_while(monkeypatch, error, lambda n, size, store: n == 3)
    assert max(sizes[3:]) <= 400 < max(sizes), "half of what a CPU begins with"
    with pytest.raises(RuntimeError, match="another"):
        scores_while(monkeypatch, RuntimeError("another"), lambda n, size, store: n == 3)


def test_memory_may_run_out_anywhere(monkeypatch):
    """In the head, in the midst of trunks and of branches, at the end, again and again: same scores, same order."""
    expected, sizes = scores_while(monkeypatch, NO_ROOM[0], lambda n, size, store: False, budget=300)
    for places in ((1,), (2,), (3, 9), (len(sizes),), (1, 2, 3)):
        scores, _ = scores_while(monkeypatch, NO_ROOM[0], lambda n, size, store, at=places: n in at, budget=300)
        assert same(scores, expected)


def test_a_store_that_finds_no_room_shrinks_once_for_all_groups(monkeypatch):
    """It used to cost every group its own failures, each half of the budget, until no budget was left."""
    expected, _ = scores_while(monkeypatch, NO_ROOM[0], lambda n, size, store: False)
    scores, sizes = scores_while(monkeypatch, NO_ROOM[0], lambda n, size, store: store > 250, budget=400)
    assert same(scores, expected)
    assert max(sizes[-10:]) > 20


def test_a_response_that_finds_no_room_alone_is_the_devices_error(monkeypatch):
    seen = []
    with pytest.raises(torch.OutOfMemoryError, match="a small device"):
        scores_while(monkeypatch, NO_ROOM[0], lambda n, size, store: seen.append(store) or store > 110, budget=400)
    assert len(seen) < 100, "it gives up soon"


def test_out_of_memory_at_the_smallest_budget_is_an_error(monkeypatch):
    guard = make_guard()

    def never(self, segments, store):
        raise torch.OutOfMemoryError("nothing fits")

    monkeypatch.setattr(fastdss.prefix.engine.Runner, "run", never)
    with pytest.raises(torch.OutOfMemoryError):
        star_scores(guard, BATCH)


# Inverse tests: each breaks one thing that exactness rests on, and must be seen.


def test_wrong_position_ids_are_detected(monkeypatch):
    make_guard()
    cut = fastdss.prefix.packing.Segment.cut

    def shifted(self, size):
        start = self.start + 1 if self.verdicts else self.start  # branches begin one position late
        return cut(Segment(self.base, start, self.ids, self.verdicts, self.copies), size)

    monkeypatch.setattr(fastdss.prefix.packing.Segment, "cut", shifted)
    monkeypatch.setattr(fastdss.prefix.engine, "KVStore", lambda n: fastdss.prefix.attention.KVStore(n + 1))
    assert not differences(make_guard(check=False)) <= 1e-4  # or NaN: a slot of the store that nobody filled is read
    with pytest.raises(ValueError, match="miss the model's own"):
        make_guard()


def test_ascending_branches_are_detected(monkeypatch):
    """In-place branches are exact only from the back of the trunk to its front."""
    schedule = fastdss.prefix.engine.schedule

    def backwards(group, head):
        segments = list(schedule(group, head))
        yield from sorted(segments, key=lambda s: (bool(s.verdicts), s.start))

    monkeypatch.setattr(fastdss.prefix.engine, "schedule", backwards)
    assert not differences(make_guard(check=False)) <= 1e-4  # or NaN, as above


@pytest.mark.parametrize("architecture", ["mistral", "gemma2"])
def test_a_forgotten_window_is_detected(monkeypatch, architecture):
    band = fastdss.prefix.attention.PrefixPlan.band
    monkeypatch.setattr(
        fastdss.prefix.attention.PrefixPlan,
        "band",
        lambda self, n, start, window, like: band(self, n, start, None, like),
    )
    assert differences(make_guard(architecture, check=False)) > 1e-4


@pytest.mark.parametrize(("architecture", "field"), [("granite", "logit_scale"), ("gemma2", "softcap")])
def test_forgotten_logit_post_ops_are_detected(monkeypatch, architecture, field):
    neutral = {"logit_scale": 1.0, "softcap": None}[field]
    monkeypatch.setattr(
        fastdss.prefix.engine,
        "lm_head",
        lambda model, check: fastdss.models.causal_lm.lm_head(model, check=check)._replace(**{field: neutral}),
    )
    assert differences(make_guard(architecture, check=False)) > 1e-4


def test_branching_at_the_response_boundary_would_be_wrong():
    """The tokenizer joins "wait." with the tail's newlines, so prefix and tail must not be tokenised apart."""
    guard = make_guard()
    history, response = [{"role": "user", "content": "Hello"}], "Then wait. Yes."
    cut = len("Then wait.")
    (whole,) = guard.encode_prefixes(history, response, [cut])
    text = guard.encoder.render([[*history, {"role": "assistant", "content": response[:cut]}]], generation_prompt=True)
    before, after = text[0].rsplit("Then wait.", 1)
    spliced = guard.encoder.tokenize([before + "Then wait.", after + "\n\n"])
    assert list(chain.from_iterable(spliced)) != whole
    tree = build_tree(guard.encode_prefixes(history, response, [cut, len(response)]))
    assert tree.rendering(0) == whole
