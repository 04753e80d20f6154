"""Fine-tuning one arm: the same rows in the same order for all of them, and one call of `dss_loss`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdss.chat.encoder import ChatEncoder
from fastdss.loss.functional import DSSLossOutput, dss_loss, token_logprobs
from fastdss.loss.objective import FULL_KL
from fastdss.models.batching import length_batches
from fastdss.models.causal_lm import backbone, lm_head
from fastdss.star.align import IGNORE, TokenWeights
from fastdss.star.scores import StarScores

from .arms import Arm
from .conversations import Conversation
from .policy import Policy

ACCEPT = 0.5  # a static filter keeps a response whose whole-response score reaches this


@dataclass(frozen=True)
class Recipe:
    steps: int
    batch_size: int
    learning_rate: float = 2e-4
    warmup: int = 4
    clip: float = 1.0
    kl_scale: float = 0.5
    layers: int | None = None  # how many of the top layers learn; None: everything
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """A training row: the policy's tokens, each label's place in the response, and the reference's opinion."""

    kind: str
    input_ids: list[int]
    labels: list[int]
    spans: list[tuple[int, int]]  # of each label that counts, in the response's characters
    parts: list[str]  # the part of the response each such label lies in
    ref_logprobs: Tensor  # [T], the reference's, at the labels
    ref_hidden: Tensor  # [T, D], its last hidden states


@dataclass
class Curves:
    """Per step: the loss, and the cross-entropy of the labels by the part of the response they lie in."""

    loss: list[float] = field(default_factory=list)
    steps: dict[str, list[int]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)


def encode_rows(policy: Policy, conversations: Sequence[Conversation], encoded: TokenWeights) -> list[Row]:
    """Training rows with all that the loss needs of the reference, which is run here and never again."""
    encoder = ChatEncoder(policy.tokenizer)
    rows = []
    for chat, tokens, (known, state) in zip(conversations, encoded, _reference(policy, encoded), strict=True):
        spans = _label_spans(encoder, chat, tokens["labels"])
        parts = [chat.part_at(min(max(end - 1, 0), len(chat.response) - 1)) for _, end in spans]
        rows.append(Row(chat.kind, tokens["input_ids"], tokens["labels"], spans, parts, known, state))
    return rows


def _label_spans(encoder: ChatEncoder, chat: Conversation, labels: Sequence[int]) -> list[tuple[int, int]]:
    """Character span in the response of every label that counts; the end of turn is an empty one at its end."""
    history = [{"role": "user", "content": chat.prompt}]
    encoding = encoder.encode_with_offsets([*history, {"role": "assistant", "content": chat.response}])
    begin, last = len(encoder.frame(history)[0]), len(chat.response)
    counted = (span for span, label in zip(encoding.offsets, labels, strict=True) if label != IGNORE)
    return [(min(max(a - begin, 0), last), min(max(b - begin, 0), last)) for a, b in counted]


@torch.no_grad()
def _reference(policy: Policy, encoded: TokenWeights) -> list[tuple[Tensor, Tensor]]:
    """Label log-probabilities ``[T]`` and last hidden states ``[T, D]`` of every row, on the CPU, from one forward.

    Where only the label forms of the KL are wanted, ``fastdss.reference_logprobs`` is all it takes.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    head = lm_head(policy.model)
    for chosen in length_batches([len(row["input_ids"]) for row in encoded], rows=16):
        batch = {name: tensor.to(policy.device) for name, tensor in encoded.pad(chosen).items()}
        with policy.autocast():
            hidden = backbone(policy.model)(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).last_hidden_state
            predicted = token_logprobs(
                hidden,
                head.weight,
                batch["labels"],
                shift=True,
                bias=head.bias,
                logit_scale=head.logit_scale,
                softcap=head.softcap,
            )
        logprobs = predicted.roll(1, dims=-1)  # from where a label is predicted to where it stands
        for b, i in enumerate(chosen):
            length = len(encoded[i]["input_ids"])
            found[i] = logprobs[b, :length].float().cpu(), hidden[b, :length].cpu()
    return [found[i] for i in range(len(encoded))]


def star_weights(arm: Arm, scores: StarScores | None, policy: Policy, rows: Sequence[Row]) -> list[Tensor]:
    """``star [T]`` of every row for this arm; a row that the arm leaves out is all zero."""
    if arm.method == "sft":
        return [torch.ones(len(row.input_ids)) for row in rows]
    assert scores is not None
    if arm.method == "rs":
        kept = (scores.final() >= ACCEPT).float()
        return [torch.full((len(row.input_ids),), float(keep)) for row, keep in zip(rows, kept, strict=True)]
    return [torch.tensor(tokens["token_weights"]) for tokens in scores.token_weights(policy.tokenizer)]


def train(
    policy: Policy,
    rows: Sequence[Row],
    stars: Sequence[Tensor],
    arm: Arm,
    recipe: Recipe,
    progress: Callable[[float], object] = lambda loss: None,
) -> tuple[Any, Curves]:
    """Fine-tune a copy of the policy; what the loss needs of the reference is in the rows."""
    torch.manual_seed(recipe.seed)
    model = policy.copy_to_train(recipe.layers)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup))
    curves = Curves()
    for step, batch in enumerate(batches([row.kind for row in rows], recipe)):
        if arm.method == "rs":
            batch = [i for i in batch if stars[i].any()]
        if not batch:
            progress(0.0)
            continue  # a filter that rejects everything trains on nothing
        batch.sort(key=lambda i: len(rows[i].input_ids))
        items, half, total = sum(len(rows[i].parts) for i in batch), (len(batch) + 1) // 2, 0.0
        seen: dict[str, list[float]] = {}
        for members in filter(None, (batch[:half], batch[half:])):  # short and long rows apart, so less padding
            chosen = [rows[i] for i in members]
            out = _loss(policy, model, chosen, [stars[i] for i in members], arm, recipe, items)
            out.loss.backward()
            total += out.loss.item()
            for part, value in _by_part(out.token_ce, chosen):
                seen.setdefault(part, []).append(value)
        torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        curves.loss.append(total)
        for part, values in seen.items():
            curves.steps.setdefault(part, []).append(step + 1)
            curves.values.setdefault(part, []).append(sum(values) / len(values))
        progress(total)
    return model.eval(), curves


def batches(kinds: Sequence[str], recipe: Recipe) -> list[list[int]]:
    """Row numbers of each step, half benign and half poisoned, every row once before any row twice."""
    rng = random.Random(f"order/{recipe.seed}")
    queues: dict[str, list[int]] = {kind: [] for kind in dict.fromkeys(kinds)}
    steps = []
    for _ in range(recipe.steps):
        batch = []
        for number, (kind, queue) in enumerate(queues.items()):
            want = (recipe.batch_size + number) // len(queues)
            while len(queue) < want:
                again = [i for i, k in enumerate(kinds) if k == kind]
                queue += rng.sample(again, len(again))
            batch += queue[:want]
            del queue[:want]
        steps.append(batch)
    return steps


def _loss(
    policy: Policy, model: Any, rows: Sequence[Row], stars: Sequence[Tensor], arm: Arm, recipe: Recipe, items: int
) -> DSSLossOutput:
    """This micro-batch's share of the step's loss."""
    device, head, start = policy.device, lm_head(model), lm_head(policy.model)
    ids = _stack([torch.tensor(row.input_ids) for row in rows], device, policy.pad_token_id)
    mask = _stack([torch.ones(len(row.input_ids), dtype=torch.long) for row in rows], device)
    full = arm.kl in FULL_KL
    with policy.autocast():
        return dss_loss(
            backbone(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state,
            head.weight,
            _stack([torch.tensor(row.labels) for row in rows], device, IGNORE),
            _stack(stars, device),
            ref_logprobs=None if full else _stack([row.ref_logprobs for row in rows], device),
            ref_hidden=_stack([row.ref_hidden for row in rows], device) if full else None,
            ref_lm_head=start.weight if full else None,
            ref_bias=start.bias if full else None,
            kl=arm.kl or "k2",
            kl_scale=recipe.kl_scale,
            shift=True,
            num_items_in_batch=items,
            bias=head.bias,
            logit_scale=head.logit_scale,
            softcap=head.softcap,
        )


def _by_part(token_ce: Tensor, rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """The part that each label lies in, and its cross-entropy, which stands where the label is predicted."""
    for values, row in zip(token_ce.cpu(), rows, strict=True):
        counted = torch.tensor(row.labels[1:]) != IGNORE
        yield from zip(row.parts, values[: len(counted)][counted].tolist(), strict=True)


def _stack(tensors: Sequence[Tensor], device: torch.device, padding: float = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=padding).to(device)
