"""A model that is scored with: threads, modes, errors half way, and what is kept when it changes between calls."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastdss import Guard, star_scores
from fastdss.errors import UserError
from fastdss.prefix.attention import KVStore, using_prefix_attention
from fastdss.prefix.engine import reference_logits
from fastdss.prefix.in_use import in_use
from fastdss.star.ahead import Ahead
from tests.guards.test_classifiers import make_guard as make_classifier_guard
from tests.support.builders import BATCH, make_guard, make_model, make_spec, make_tokenizer, offloaded

WAIT = 0.2  # seconds within which a thread that is not held up has long been through


@pytest.fixture
def guard() -> Guard:
    return make_guard("llama")


def per_prefix(guard: Guard, prompt: str, response: str, every: int = 5) -> torch.Tensor:
    batch = {"prompt": [prompt], "response": [response]}
    return star_scores(guard, batch, every=every, method="per_prefix").scores[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("held", [True, False])
def test_a_fork_while_a_thread_scores_is_told_so_and_does_not_wait_for_ever(guard: Guard, held: bool) -> None:
    """The thread that would let the model go is not in the child. A fork between two calls has all that it needs."""
    right = star_scores(guard, BATCH).scores
    scoring, done = threading.Event(), threading.Event()

    def other() -> None:
        with in_use(guard.model):
            scoring.set()
            done.wait()

    thread = threading.Thread(target=other)
    if held:
        thread.start()
        scoring.wait()
    child = os.fork()
    if not child:
        try:
            found = star_scores(guard, BATCH, method="per_prefix").scores
            code = 0 if all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, right, strict=True)) else 1
        except UserError as error:
            code = 2 if "was forked while another thread scored" in str(error) else 3
        except BaseException:
            code = 4
        os._exit(code)
    done.set()
    if held:
        thread.join()
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child waits for ever")
    assert os.waitstatus_to_exitcode(status) == (2 if held else 0)


def through_the_tree(guard: Guard) -> None:
    star_scores(guard, BATCH)


def one_by_one(guard: Guard) -> None:
    reference_logits(guard.model, guard.token_ids, [[1, 2, 3]])


@pytest.mark.parametrize("use", [through_the_tree, one_by_one])
def test_another_thread_waits_until_the_model_has_its_own_attention_again(
    guard: Guard, use: Callable[[Guard], None]
) -> None:
    before, done, failed = guard.model.config._attn_implementation, threading.Event(), []

    def other() -> None:
        try:
            use(guard)
        except ValueError as error:
            failed.append(error)
        done.set()

    thread = threading.Thread(target=other)
    with using_prefix_attention(guard.model):
        thread.start()
        assert not done.wait(WAIT)
    thread.join()
    assert not failed
    assert guard.model.config._attn_implementation == before


def test_threads_with_one_guard_get_the_scores_of_one_thread() -> None:
    guard = Guard.tiny()
    interval = sys.getswitchinterval()
    batch = {"prompt": ["How do I reach Anna?"] * 60, "response": ["Ring the bell. Her number is 555-0147."] * 60}
    alone = star_scores(guard, batch).scores
    found: list[list[torch.Tensor]] = []
    threads = [threading.Thread(target=lambda: found.append(star_scores(guard, batch).scores)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(torch.equal(a, b) for scores in found for a, b in zip(scores, alone, strict=True))
    assert sys.getswitchinterval() == interval


def test_the_switch_interval_comes_back_whichever_of_two_ends_first() -> None:
    interval = sys.getswitchinterval()
    first, second = iter(Ahead(str, range(3))), iter(Ahead(str, range(3)))
    assert [next(first), next(second)] == ["0", "0"]
    assert [*first] == ["1", "2"]
    assert sys.getswitchinterval() < interval
    assert [*second] == ["1", "2"]
    assert sys.getswitchinterval() == interval


def test_a_thread_may_score_within_its_own_use_of_the_model(guard: Guard) -> None:
    apart = star_scores(guard, BATCH).scores
    with using_prefix_attention(guard.model):
        within = star_scores(guard, BATCH).scores
    assert all(torch.equal(a, b) for a, b in zip(within, apart, strict=True))


def test_every_module_is_left_in_its_mode(guard: Guard) -> None:
    guard.model.train()
    guard.model.model.layers[1].eval()
    before = [module.training for module in guard.model.modules()]
    with in_use(guard.model):
        assert not any(module.training for module in guard.model.modules())
    assert [module.training for module in guard.model.modules()] == before


def test_an_error_while_the_attention_is_set_leaves_the_model_as_it_was(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard.model.train()
    before, real = guard.model.config._attn_implementation, guard.model.set_attn_implementation

    def half_way(name: str) -> None:
        real(name)
        if name != before:
            raise KeyboardInterrupt

    monkeypatch.setattr(guard.model, "set_attn_implementation", half_way)
    with pytest.raises(KeyboardInterrupt), using_prefix_attention(guard.model):
        pass
    assert guard.model.config._attn_implementation == before
    assert guard.model.training


@pytest.mark.parametrize("device", ["meta", "cuda"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_what_torch_takes_for_the_default_device_changes_nothing(device: str, kind: str) -> None:
    judge = make_classifier_guard("bert") if kind == "bert" else make_guard("llama")
    prompt, response = BATCH["prompt"][1], BATCH["response"][1]
    methods = ("tree", "per_prefix")
    apart = [star_scores(judge, BATCH, every=2, method=method).scores for method in methods]
    torch.set_default_device(device)
    try:
        if kind == "llama":
            Guard(judge.model, judge.tokenizer, judge.spec)
        stream = judge.stream(prompt, every=2)
        streamed = stream.append(response) + stream.close()
        within = [star_scores(judge, BATCH, every=2, method=method).scores for method in methods]
    finally:
        torch.set_default_device(None)
    assert streamed == pytest.approx(apart[1][1].tolist(), abs=1e-6)
    for found, expected in zip(within, apart, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_torch_takes_for_the_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    gemms = ["default", "onednn"] if torch.backends.mkldnn.is_available() else ["default"]
    right = [star_scores(make_guard("llama"), BATCH, every=2, gemm=gemm) for gemm in gemms]
    judges = [make_guard("llama") for _ in gemms]
    torch.set_default_dtype(dtype)
    try:
        found = [star_scores(judge, BATCH, every=2, gemm=gemm) for judge, gemm in zip(judges, gemms, strict=True)]
        finals = [star.final() for star in found]
    finally:
        torch.set_default_dtype(torch.float32)
    for star, final, expected in zip(found, finals, right, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(star.scores, expected.scores, strict=True))
        assert torch.equal(final, expected.final())


@pytest.mark.parametrize("away", ["model.embed_tokens", "lm_head"])
def test_per_prefix_takes_a_model_whose_embedding_or_head_is_offloaded(away: str, tmp_path: Path) -> None:
    """The tree reads rows of both and refuses it; one forward for each prefix leaves it to accelerate."""
    right = star_scores(make_guard("llama"), BATCH, every=2, method="per_prefix").scores
    model = offloaded(make_guard("llama").model, away, tmp_path)
    judge = Guard(model, make_tokenizer(), make_spec(), check=False)
    found = star_scores(judge, BATCH, every=2, method="per_prefix").scores
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
    with pytest.raises(UserError, match="its embedding or its head is offloaded"):
        star_scores(judge, BATCH)
    with torch.device("meta"):
        empty = Guard(make_model("llama", len(make_tokenizer())), make_tokenizer(), make_spec(), check=False)
    with pytest.raises(UserError, match="its weights lie on the meta device, which has no memory"):
        star_scores(empty, BATCH, method="per_prefix")


def to_bfloat16(guard: Guard) -> None:
    guard.model.to(torch.bfloat16)


def by_two_percent(guard: Guard) -> None:
    with torch.no_grad():
        for parameter in guard.model.parameters():
            parameter.mul_(1.02)


@pytest.mark.parametrize(("change", "limit"), [(to_bfloat16, 2e-2), (by_two_percent, 1e-6)])
def test_scores_and_streams_follow_a_model_that_changes(
    guard: Guard, change: Callable[[Guard], None], limit: float
) -> None:
    prompt, response = BATCH["prompt"][1], BATCH["response"][1]
    middle = len(response) // 2
    stream = guard.stream(prompt, every=2)
    stream.append(response[:middle])
    old = star_scores(guard, BATCH, every=2).scores[1]
    change(guard)
    right = per_prefix(guard, prompt, response, every=2)
    assert (right - old).abs().max() > 1e-4  # else the test shows nothing
    assert (star_scores(guard, BATCH, every=2).scores[1] - right).abs().max() <= limit
    new = stream.append(response[middle:]) + stream.close()
    assert (torch.tensor(new) - right[-len(new) :]).abs().max() <= limit


@pytest.mark.parametrize("target", ["down_proj", "lm_head"])
def test_scores_and_streams_follow_adapters_that_are_switched_off(guard: Guard, target: str) -> None:
    """Also those of a head, whose dropout is not at work while the model is scored with."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=[target], lora_dropout=0.5, task_type="CAUSAL_LM")
    model = peft.get_peft_model(guard.model, config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    judge = Guard(model, guard.tokenizer, guard.spec)
    prompt, response = BATCH["prompt"][1], BATCH["response"][1]
    on = star_scores(judge, BATCH, every=2).scores[1]
    assert (on - per_prefix(judge, prompt, response, every=2)).abs().max() <= 1e-6
    stream = judge.stream(prompt, every=2)
    stream.append(response[: len(response) // 2])
    with model.disable_adapter():
        off = per_prefix(judge, prompt, response, every=2)
        assert (star_scores(judge, BATCH, every=2).scores[1] - off).abs().max() <= 1e-6
        new = stream.append(response[len(response) // 2 :]) + stream.close()
    assert (on - off)[-len(new) :].abs().max() > 1e-4  # else the test shows nothing
    assert (torch.tensor(new) - off[-len(new) :]).abs().max() <= 1e-6


def test_what_was_kept_under_autocast_is_not_used_without_it(guard: Guard) -> None:
    alone = star_scores(make_guard("llama"), BATCH).scores
    stream = guard.stream("Hello")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        star_scores(guard, BATCH)
        stream.append("You can call her at any time you like, on ")
    assert all(torch.equal(a, b) for a, b in zip(star_scores(guard, BATCH).scores, alone, strict=True))
    new = stream.append("555 0100. It is not unsafe. ") + stream.close()
    right = per_prefix(guard, "Hello", stream.text)[-len(new) :]
    assert (torch.tensor(new) - right).abs().max() <= 1e-6


def test_a_slot_that_could_not_move_is_computed_anew(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may run out after the first layers have moved, over what the others still read."""
    streams = guard.streams()
    first, second = (streams.open(prompt, every=2) for prompt in ("Hello there", "Is it safe?"))
    streams.append({first: "You can call her ", second: "It is not "})
    real, calls = KVStore.resized, []

    def torn(store: KVStore, capacity: int) -> KVStore:
        calls.append(capacity)
        if len(calls) > 1:
            return real(store, capacity)
        for keys, values in store.layers.values():
            keys.zero_()
            values.zero_()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(KVStore, "resized", torn)
    new = streams.append({first: "on 555 0100 and mix the flour. " * 8}).of(first)
    assert len(calls) > 1
    right = per_prefix(guard, "Hello there", first.text, every=2)[-len(new) :]
    assert (torch.tensor(new) - right).abs().max() <= 1e-6
