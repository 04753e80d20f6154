"""Runs prefix trees through a model: verdict logits for every prefix, computing each distinct token once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdss.errors import UserError
from fastdss.models.causal_lm import backbone, lm_head
from fastdss.models.classifier import class_head, token_types
from fastdss.models.probes import autocast_dtype
from fastdss.upstream.peft import adapters_in_use
from fastdss.upstream.torch import version
from fastdss.upstream.transformers import key_rotation

from .attention import (
    LONGEST_SEGMENT,
    KVStore,
    Mover,
    PrefixPlan,
    attend_alone,
    attend_in_order,
    using_prefix_attention,
)
from .cpu_linear import PackedWeights, cpu_gemm
from .in_use import in_use, input_device
from .memory import SMALLEST_BUDGET, halved
from .packed_attention import to_device
from .packing import (
    Group,
    Segment,
    make_groups,
    micro_batches,
    schedule,
    shared_head,
    shortcut_segments,
)
from .rounds import Gate, fetch, run_rounds
from .shortcut_attention import attend_shortcuts
from .tree import PrefixTree, shared_length

Report = Callable[[int], None]  # called with the number of new scores
Saved = dict[int, tuple[Tensor, Tensor]]  # keys and values of each layer
# Whether keys can be moved is tried by moving a key by _FAR positions; relative to its norm it may be off by _MOVED,
# which leaves room for rounding to 16 bit. Both are choices.
_FAR, _MOVED = 61, 0.02


class Runner:
    """Runs micro-batches of segments through ``model``, and computes logits of the verdict tokens alone."""

    def __init__(self, model: Any, verdict_ids: Sequence[int], attend: Callable[..., Tensor] = attend_in_order) -> None:
        self.attend = attend
        self.body = backbone(model)
        self.read_head(model)
        self.device = next(self.body.parameters()).device
        if self.device.type == "meta" or self.head.weight.is_meta:
            raise UserError(
                f"{type(model).__name__}: its embedding or its head is offloaded, but both must lie on a device: pass "
                "a device_map that keeps them there, or a smaller dtype"
            )
        self.rows = torch.tensor(list(verdict_ids), device=self.head.weight.device)
        self.config = model.config.get_text_config(decoder=True)
        self.chunks = _chunks(self.config)
        self.bands: dict[tuple[Any, ...], Tensor] = {}
        self.move: Mover | None = None

    def read_head(self, model: Any) -> None:
        """Take the head as it is now: its adapters are added into a copy, which does not follow them. With dropout
        before an adapter that takes evaluation mode."""
        with in_use(model):
            self.head = class_head(model) or lm_head(model, check=False)

    def run(
        self, segments: list[Segment], store: KVStore, read: Callable[[list[int], Tensor], None] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Logits ``[verdicts, R]`` at the segments' verdict positions, and the index of the score of each.

        The logits stay on the device, and the host does not wait for them: it launches the next micro-batch while this
        one runs. ``read`` is called with the indices of the tapped scores and the hidden states ``[layers + 1, taps,
        D]`` at the taps, on the CPU.
        """
        ids = [token for segment in segments for token in segment.ids]
        positions = [p for segment in segments for p in range(segment.start, segment.start + len(segment.ids))]
        rows, scores, taps, tapped, left = [], [], [], [], 0
        for segment in segments:
            rows += [left + at for at, _ in segment.verdicts]
            scores += [k for _, k in segment.verdicts]
            taps += [left + at for at, _ in segment.taps]
            tapped += [k for _, k in segment.taps]
            left += len(segment.ids)
        plan = PrefixPlan(segments, store, self.attend, self.bands, chunks=self.chunks, move=self.move)
        states = {"output_hidden_states": True} if read and taps else {}
        arrays = [np.asarray(numbers, dtype=np.int64) for numbers in (ids, positions, rows)]
        tokens, places, read_at = to_device(arrays, self.device)
        outputs = self.body(
            input_ids=tokens[None],
            position_ids=places[None],
            use_cache=False,
            fastdss_plan=plan,
            **states,
        )
        hidden = outputs.last_hidden_state
        if read and taps:
            read(tapped, torch.stack([layer[0, taps].float().cpu() for layer in outputs.hidden_states]))
        self._check_layers(plan, max(positions))
        picked = hidden[0, read_at.to(hidden.device)]
        return self.head.logits(picked.to(self.rows.device), self.rows), scores

    def of_shortcuts(self) -> Runner | None:
        """A runner for shortcuts, or None if this model's keys cannot be moved to other positions.

        It is tried: a token that attends only to itself has the same states at any position. So in every layer its key
        at one position, moved to another, must equal its key there.
        """
        move = key_rotation(self.body)
        if move is None:
            return None
        store, alone, runner = KVStore(2), copy.copy(self), copy.copy(self)
        alone.attend = attend_alone
        alone.run([Segment(0, place, [int(self.rows[0])]) for place in (0, _FAR)], store)
        for keys, _ in store.layers.values():
            here, there = keys.double().split(1, 1)
            try:
                moved = move(here, torch.full((1,), _FAR, device=here.device))
            except RuntimeError:  # the model rotates a part of a key that it makes by itself, as DeepSeek V3 does
                return None
            if not (moved - there).norm() <= _MOVED * there.norm():
                return None
        runner.attend, runner.move = attend_shortcuts, move
        return runner

    def _check_layers(self, plan: PrefixPlan, last: int) -> None:
        """Refuse models whose layers attend elsewhere, or do not pass on the window that their own mask would apply."""
        name, layers = type(self.body).__name__, self.config.num_hidden_layers
        if len(plan.windows) != layers:
            raise UserError(
                f"{name}: {len(plan.windows)} of {layers} layers attend through transformers' attention registry; "
                "use method='per_prefix'"
            )
        window, kinds = getattr(self.config, "sliding_window", None), getattr(self.config, "layer_types", None)
        slides = [
            told is None and (not kinds or kinds[layer] == "sliding_attention") for layer, told in plan.windows.items()
        ]
        if window and last >= window and any(slides):
            raise UserError(f"{name} keeps its window of {window} tokens from its attention; use method='per_prefix'")


def fingerprint(body: nn.Module) -> list[Any]:
    """What tells that a model's earlier keys and values still go with new ones: its parameters, how often they were
    written to, where they are and in which dtype; whether autocast chooses another one; and which of PEFT's adapters
    are in use."""
    parameters = [(id(p), version(p), p.dtype, p.device) for p in body.parameters()]
    return [autocast_dtype(next(body.parameters()).device), parameters, adapters_in_use(body)]


class KeptHead:
    """Keys and values of ``ids``, the tokens with which a guard's renderings begin, kept from call to call.

    They are used again if the model has the same ``fingerprint``, and still gives the last of these tokens the same
    keys and values, bit for bit, in every layer. The fingerprint alone would miss writes through ``.data``, and hooks.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self._store: KVStore | None = None
        self._fingerprint: list[Any] = []

    def layers(self, runner: Runner, budget: int) -> Saved:
        """Keys and values ``[Hkv, len(ids), d]`` of each layer, for the model as it is now."""
        found = fingerprint(runner.body)
        store, self._store = self._store, None  # if a forward below fails, nothing stays kept
        if store is None or found != self._fingerprint or not self._replays(runner, store):
            store = KVStore(len(self.ids))
            _compute(runner, store, self.ids, 0, budget)
            if self.ids:
                self._replays(runner, store)  # writes the last token's keys and values as later replays will make them
        self._store, self._fingerprint = store, found
        return store.layers

    def _replays(self, runner: Runner, store: KVStore) -> bool:
        """Compute the last token again; returns whether its keys and values are the same as before."""
        last = len(self.ids) - 1
        before = [kept[:, last].clone() for pair in store.layers.values() for kept in pair]
        _compute(runner, store, self.ids, max(last, 0), 1)
        after = [kept[:, last] for pair in store.layers.values() for kept in pair]
        same = [(old == new).all().to(runner.device) for old, new in zip(before, after, strict=True)]
        return bool(torch.stack(same).all()) if same else True  # the host waits once, not once per layer

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptHead, (self.ids,)  # copies and pickles start empty


def tree_logits(
    model: Any,
    verdict_ids: Sequence[int],
    trees: Sequence[PrefixTree],
    prompts: Sequence[int],
    *,
    budget: int | None = None,
    store_tokens: int | None = None,
    gemm: str = "auto",
    attend: Callable[..., Tensor] = attend_in_order,
    packed: PackedWeights | None = None,
    kept: KeptHead | None = None,
    gate: Gate | None = None,
    report: Report = lambda done: None,
) -> Tensor:
    """Logits ``[total prefixes, R]`` of the verdict tokens, as one forward per prefix would give them.

    ``prompts[i]`` is the number of tree i's prompt; trees with the same number share the prompt's tokens. ``budget``
    tokens go through the model at a time, and the store holds ``store_tokens`` tokens of trunks. When memory runs out,
    both are halved for the rest of the call, and the group is computed again; if there is no room even for one response
    and the smallest budget, the error is raised. ``packed`` and ``kept`` carry prepacked weights and the head's keys
    and values from call to call. ``gate`` decides which branches are computed; the logits of the others are NaN.
    """
    runner = Runner(model, verdict_ids, attend)
    on_cpu = runner.device.type == "cpu"
    budget = budget or (800 if on_cpu else 8192)
    store_tokens = store_tokens or (8192 if on_cpu else 65536)
    total = sum(tree.num_prefixes for tree in trees)
    dtype = torch.promote_types(runner.head.weight.dtype, torch.float32)
    # NaN, so that a score that is not computed cannot be mistaken for one.
    logits = torch.full((total, len(verdict_ids)), float("nan"), dtype=dtype)
    head = shared_head(trees)
    known = shared_length(np.asarray(kept.ids), np.asarray(head)) if kept else 0
    head = head if len(trees) > 1 else head[:known]
    groups = make_groups(trees, prompts, store_tokens)
    work = sum(tree.num_tokens for tree in trees)
    reads = () if gate is None else (gate.read,)
    with using_prefix_attention(model), cpu_gemm(runner.body, gemm, packed, work):
        saved: Saved = {}
        on_device: list[Tensor] = []  # logits of the finished groups
        places: list[int] = []  # the indices of their scores
        shortcuts = runner.of_shortcuts() if gate is not None and gate.shortcut else None
        while groups:
            rows: list[Tensor] = []
            order: list[int] = []
            try:
                saved = saved or _head_store(runner, head, budget, kept, known)
                store = KVStore(groups[0].capacity)
                store.load(saved, groups[0].bases)
                run = partial(_run, runner, store, budget, reads, report, rows, order)
                if gate is None:
                    run(schedule(groups[0], len(head)))
                else:
                    listen = partial(_listen, shortcuts, store, groups[0], budget, gate)
                    run_rounds(run, groups[0], len(head), store, gate, listen)
            except RuntimeError as error:
                budget = halved(budget, error, possible=budget > SMALLEST_BUDGET or len(groups[0].trees) > 1)
                report(-len(order))
                store_tokens = groups[0].capacity // 2
                groups = [part for group in groups for part in group.split(store_tokens)]
            else:
                groups.pop(0)
                on_device += rows
                places += order
        if places:
            logits[places] = fetch(on_device).to(logits)
    return logits


def _run(
    runner: Runner,
    store: KVStore,
    budget: int,
    reads: Sequence[Callable[[list[int], Tensor], None]],
    report: Report,
    rows: list[Tensor],
    order: list[int],
    segments: Iterable[Segment],
) -> tuple[list[Tensor], list[int]]:
    """Compute segments and return their logits and the indices of their scores; both are added to the group's too."""
    done, known = len(rows), len(order)
    for batch in micro_batches(segments, budget, LONGEST_SEGMENT):
        found, scores = runner.run(batch, store, *reads)
        rows.append(found)
        order += scores
        report(len(scores))
    return rows[done:], order[known:]


def _listen(runner: Runner | None, store: KVStore, group: Group, budget: int, gate: Gate) -> None:
    """Compute the shortcuts that the gate wants, and give it their logits. runner: None if keys cannot be moved."""
    if runner is None:
        return
    segments = shortcut_segments(group, gate.shortcut, gate.wants)
    for batch in micro_batches(segments, max(budget, gate.shortcut), LONGEST_SEGMENT):
        found, scores = runner.run(batch, store)
        gate.hear(scores, fetch([found]))


def _head_store(runner: Runner, head: list[int], budget: int, kept: KeptHead | None, known: int) -> Saved:
    """Keys and values of ``head``, the tokens that all trunks begin with; ``kept`` has the first ``known`` of them."""
    store = KVStore(len(head))
    if kept is not None and known:
        store.load(kept.layers(runner, budget), [0], known)
    _compute(runner, store, head, known, budget)
    return store.layers


def _compute(runner: Runner, store: KVStore, ids: list[int], start: int, budget: int) -> None:
    """Write the keys and values of ``ids[start:]`` to the store's first slot."""
    for batch in micro_batches([Segment(0, start, ids[start:])] if ids[start:] else [], budget, LONGEST_SEGMENT):
        runner.run(batch, store)


def reference_logits(
    model: Any,
    verdict_ids: Sequence[int],
    renderings: Sequence[Sequence[int]],
    report: Report = lambda done: None,
    *,
    separator: int | None = None,
) -> Tensor:
    """Logits ``[len(renderings), R]`` by one forward of the unchanged model per rendering, for comparison.

    Columns are verdict tokens in the last token's logits, or classes of a model that classifies whole texts.
    """
    device = input_device(model)
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    rows = []
    # A long text leaves its "dynamic" rotary frequencies behind, also for the shorter ones after it, until a text
    # within the native length takes them back: one of a single token, before each.
    remembers = any(rules.get("rope_type") == "dynamic" for rules in _rope_rules(model))
    with in_use(model):
        for ids in renderings:
            row = torch.tensor([list(ids)], device=device)
            if remembers:
                model(input_ids=row[:, :1], use_cache=False, **token_types(row[:, :1], separator))
            logits = model(input_ids=row, use_cache=False, **keep, **token_types(row, separator)).logits
            rows.append(logits[0].reshape(-1, logits.shape[-1])[-1, list(verdict_ids)].cpu())
            report(1)
    stacked = torch.stack(rows)
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32))


def _chunks(config: Any) -> dict[int, int]:
    """For layers with chunked attention, in which tokens see their own chunk only, the size of a chunk."""
    kinds, size = getattr(config, "layer_types", None) or (), getattr(config, "attention_chunk_size", None)
    return {layer: size for layer, kind in enumerate(kinds) if kind == "chunked_attention" and size}


def _rope_rules(model: Any) -> list[dict[str, Any]]:
    """The rules of rotary positions: the config's one set of parameters, or one for each type of layer."""
    rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return [rope, *(value for value in rope.values() if isinstance(value, dict))]


def check_supported(model: Any, longest: int) -> None:
    """Raise ``ValueError`` for models with state outside of keys and values, and for those whose rotary frequencies
    depend on the length of the text, where ``longest``, the length of the longest text, is one that matters."""
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    known = {"full_attention", "sliding_attention", "chunked_attention"}
    strange = set(getattr(config, "layer_types", None) or ()) - known
    if strange:
        raise UserError(f"{name} has layers of type {sorted(strange)}; use method='per_prefix'")
    for kind in _rope_rules(model):
        if kind.get("rope_type") in ("dynamic", "longrope"):
            native = kind.get("original_max_position_embeddings") or config.max_position_embeddings
            if longest > native:
                raise UserError(
                    f"{name}: beyond {native} tokens its rotary frequencies depend on the length of the text, so "
                    f"prefixes of a text of {longest} tokens share nothing; use method='per_prefix'"
                )
