"""What a guard keeps from call to call is used again, and never after the model changed."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

import fastdss.prefix.cpu_linear
from fastdss import Guard, star_scores
from fastdss.prefix.engine import Runner
from fastdss.prefix.tree import shared_length
from tests.support.builders import ARCHITECTURES, BATCH, make_guard

ONE = {name: BATCH[name][1:2] for name in BATCH}
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def count_packings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    packed: list[int] = []
    real = fastdss.prefix.cpu_linear.prepacked
    monkeypatch.setattr(fastdss.prefix.cpu_linear, "prepacked", lambda *args: packed.append(1) or real(*args))
    return packed


def assert_like_reference(guard: Guard, batch: dict, **options) -> None:
    tree, naive = star_scores(guard, batch, **options), star_scores(guard, batch, method="per_prefix")
    for a, b in zip(tree.scores, naive.scores, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def load_other_weights(guard: Guard) -> None:
    guard.model.load_state_dict(make_guard(seed=5).model.state_dict())


def add_in_place(guard: Guard) -> None:
    with torch.no_grad():
        guard.model.model.layers[1].mlp.up_proj.weight.add_(0.3)


def add_behind_the_version_counter(guard: Guard) -> None:
    guard.model.model.layers[0].self_attn.k_proj.weight.data.mul_(1.5)


def put_another_tensor(guard: Guard) -> None:
    layer = guard.model.model.layers[2].self_attn.v_proj
    layer.weight.data = layer.weight.data.flip(0).clone()


def put_another_parameter(guard: Guard) -> None:
    layer = guard.model.model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().flip(1))


def change_an_embedding_of_the_head(guard: Guard) -> None:
    """A row that the head's last token does not use: only the version tells."""
    with torch.no_grad():
        guard.model.get_input_embeddings().weight[guard.head.ids[1]] += 1.0


def put_a_hook(guard: Guard) -> None:
    """As an adapter would: no parameter changes."""
    guard.model.model.layers[0].mlp.register_forward_hook(lambda module, args, out: out * 2)


CHANGES = [
    load_other_weights,
    add_in_place,
    add_behind_the_version_counter,
    put_another_tensor,
    put_another_parameter,
    change_an_embedding_of_the_head,
    put_a_hook,
]


@needs_onednn
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("batch", [BATCH, ONE], ids=["several rows", "one row"])
def test_never_stale(change: Callable[[Guard], None], batch: dict) -> None:
    guard = make_guard(check=False)
    before = star_scores(guard, batch, gemm="onednn")
    change(guard)
    after = star_scores(guard, batch, gemm="onednn")
    assert max((a - b).abs().max().item() for a, b in zip(before.scores, after.scores, strict=True)) > 1e-4
    assert_like_reference(guard, batch, gemm="onednn")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_second_call_computes_less_and_gives_the_same(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make_guard(architecture)
    computed: list[int] = []
    run = Runner.run
    monkeypatch.setattr(
        Runner, "run", lambda self, s, store: computed.append(sum(len(x.ids) for x in s)) or run(self, s, store)
    )
    calls = []
    for _ in range(2):
        computed.clear()
        assert_like_reference(guard, ONE)
        calls.append(sum(computed))
    assert calls[0] - calls[1] == len(guard.head.ids) > 20  # both replay its last token


@needs_onednn
def test_weights_are_packed_once_and_only_the_changed_ones_again(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, packed = make_guard(), count_packings(monkeypatch)
    for expected in (3 * 7, 0):
        packed.clear()
        star_scores(guard, ONE, gemm="onednn")
        assert len(packed) == expected
    add_in_place(guard)
    star_scores(guard, ONE, gemm="onednn")
    assert len(packed) == 1
    guard.packed.clear()
    star_scores(guard, ONE, gemm="onednn")
    assert len(packed) == 1 + 3 * 7


@needs_onednn
def test_a_small_call_computes_alike_whatever_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were packed weights used once they are there, the same call would give other bits the second time."""
    monkeypatch.setattr(fastdss.prefix.cpu_linear, "_by_amd", lambda: True)
    guard, packed = make_guard(), count_packings(monkeypatch)
    first = star_scores(guard, ONE).scores[0]
    assert not packed
    star_scores(guard, ONE, gemm="onednn")
    assert len(packed) == 3 * 7
    for _ in range(5):
        assert torch.equal(star_scores(guard, ONE).scores[0], first)
    assert len(packed) == 3 * 7


@needs_onednn
def test_everything_is_freed_with_the_guard() -> None:
    guard = make_guard()
    star_scores(guard, ONE, gemm="onednn")
    kept = [weakref.ref(guard.packed.of(guard.model.model.layers[0].mlp.up_proj)), weakref.ref(guard.head._store)]
    model = guard.model
    del guard
    gc.collect()
    assert [ref() for ref in kept] == [None, None]
    assert model.model.layers[0].mlp.up_proj.weight is not None


@needs_onednn
def test_copies_of_a_guard_start_empty() -> None:
    """A prepacked weight has no bytes to copy; a copy packs its own."""
    guard = make_guard()
    scores = star_scores(guard, ONE, gemm="onednn").scores[0]
    for twin in (copy.deepcopy(guard), pickle.loads(pickle.dumps(guard))):
        assert len(twin.packed._kept) == 0
        assert torch.equal(star_scores(twin, ONE, gemm="onednn").scores[0], scores)


def test_models_made_in_inference_mode_have_no_versions() -> None:
    with torch.inference_mode():
        guard = make_guard()
    for _ in range(2):
        assert_like_reference(guard, BATCH)


def test_a_replay_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It wrote keys of the changed model over the last token's; a comparison with them would see no change."""
    guard = make_guard()
    star_scores(guard, ONE)
    put_a_hook(guard)
    run = Runner.run

    def broken(self: Runner, segments: list, store: object) -> None:
        run(self, segments, store)
        raise RuntimeError("lost")

    monkeypatch.setattr(Runner, "run", broken)
    with pytest.raises(RuntimeError, match="lost"):
        star_scores(guard, ONE)
    monkeypatch.setattr(Runner, "run", run)
    assert_like_reference(guard, ONE)


def test_a_stream_begins_with_the_kept_head(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make_guard()
    star_scores(guard, ONE)
    stream = guard.stream("Hello", every=1)
    sizes: list[int] = []
    run = Runner.run
    monkeypatch.setattr(
        Runner, "run", lambda self, s, store: sizes.append(sum(len(x.ids) for x in s)) or run(self, s, store)
    )
    score = stream.append("You ")[0]
    (whole,) = guard.encode_prefixes(stream.history, "You", [3])
    known = shared_length(np.asarray(guard.head.ids), np.asarray(whole))
    assert known >= len(guard.head.ids) - 1  # a blank at its end may join the prompt's first word
    assert sizes == [1, len(whole) - known]
    naive = star_scores(guard, {"prompt": ["Hello"], "response": ["You"]}, method="per_prefix")
    assert score == pytest.approx(naive.scores[0].item(), abs=1e-6)
