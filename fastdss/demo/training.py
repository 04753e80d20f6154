"""Fine-tuning one arm. All arms see the same rows in the same order; the loss is one call of `dss_loss`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdss.chat.encoder import ChatEncoder
from fastdss.errors import UserError
from fastdss.loss.functional import dss_loss, token_logprobs
from fastdss.loss.objective import FULL_KL
from fastdss.models.batching import length_batches
from fastdss.models.causal_lm import backbone, lm_head
from fastdss.star.align import IGNORE, TokenWeights
from fastdss.star.scores import StarScores

from .arms import WITHOUT_VERDICTS, Arm
from .conversations import Conversation
from .policy import Policy, stack, without_lower_layers

# Hidden states computed in other batches may differ by this much, relatively: rounding in bf16 stays below, while a
# layer or a scale that is left out makes far more.
SAME = 0.02
FEW = 4  # steps of so few rows are one micro-batch; larger ones are two, short rows and long ones: a choice
# Constrained SFT (arXiv 2406.05946): beta at a response's first token, at the next four, at the others
FIRST, EARLY, LATER = 0.5, 2.0, 0.1
EARLY_TOKENS = 5
ACCEPT = 0.5  # a static filter keeps a response if the score of the whole response is at least this


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
    """A training row: the policy's tokens, where each label lies in the response, and what the reference says of it."""

    kind: str
    input_ids: list[int]
    labels: list[int]
    spans: list[tuple[int, int]]  # of each label that counts, in the response's characters
    parts: list[str]  # the part of the response in which each such label lies
    ref_logprobs: Tensor  # [T], the reference's log-probabilities of the labels
    ref_hidden: Tensor  # [T, D], the reference's last hidden states
    frozen: Tensor | None = None  # [T, D], outputs of the layers that no arm trains; None: they are computed each time


@dataclass
class Curves:
    """The loss of each step, and the cross-entropy of labels by the part of the response in which they lie."""

    loss: list[float] = field(default_factory=list)
    steps: dict[str, list[int]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)


def encode_rows(
    policy: Policy, conversations: Sequence[Conversation], encoded: TokenWeights, frozen: int = 0
) -> list[Row]:
    """Training rows with all that the loss needs of the reference model, which runs only here.

    frozen: how many of the lowest layers no arm trains; their outputs are kept, so that they run only here too.
    """
    encoder = ChatEncoder(policy.tokenizer)
    rows = []
    for chat, tokens, found in zip(conversations, encoded, _reference(policy, encoded, frozen), strict=True):
        spans = _label_spans(encoder, chat, tokens["labels"])
        parts = [chat.part_at(min(max(end - 1, 0), len(chat.response) - 1)) for _, end in spans]
        rows.append(Row(chat.kind, tokens["input_ids"], tokens["labels"], spans, parts, *found))
    if frozen:
        _check_frozen(policy, rows[0], frozen)
    return rows


@torch.no_grad()
def _check_frozen(policy: Policy, row: Row, frozen: int) -> None:
    """Raise ``UserError`` where the upper layers, given the lower ones' outputs, do not give the whole model's result:
    some model classes index layers by number or scale embeddings."""
    with policy.autocast(), without_lower_layers(policy.model, frozen):
        again = _hidden(policy, policy.model, [row]).float().cpu()
    error = ((again[0] - row.ref_hidden).norm() / row.ref_hidden.norm()).item()
    if not error < SAME:
        name = type(policy.model).__name__
        raise UserError(f"frozen: expected the layers of {name} from {frozen} on to do alone, off by {error:.2}")


def _label_spans(encoder: ChatEncoder, chat: Conversation, labels: Sequence[int]) -> list[tuple[int, int]]:
    """The characters of the response that each label covers; the end of turn covers none, at the response's end."""
    history = [{"role": "user", "content": chat.prompt}]
    encoding = encoder.encode_with_offsets([*history, {"role": "assistant", "content": chat.response}])
    begin, last = len(encoder.frame(history)[0]), len(chat.response)
    counted = (span for span, label in zip(encoding.offsets, labels, strict=True) if label != IGNORE)
    return [(min(max(a - begin, 0), last), min(max(b - begin, 0), last)) for a, b in counted]


@torch.no_grad()
def _reference(policy: Policy, encoded: TokenWeights, frozen: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """The labels' log-probabilities ``[T]`` and the last hidden states ``[T, D]`` of every row, on the CPU, from one
    forward; with ``frozen`` layers also the input of the first layer above them.

    For the label forms of the KL alone, ``fastdss.reference_logprobs`` would do.
    """
    found: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
    entered: list[Tensor] = []
    first = stack(policy.model)[frozen]
    kept = first.register_forward_pre_hook(lambda module, given: entered.append(given[0].cpu())) if frozen else None
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
            lower = entered[-1][b, :length] if frozen else None
            found[i] = logprobs[b, :length].float().cpu(), hidden[b, :length].cpu(), lower
        entered.clear()
    if kept:
        kept.remove()
    return [found[i] for i in range(len(encoded))]


def star_weights(arm: Arm, scores: StarScores | None, policy: Policy, rows: Sequence[Row]) -> list[Tensor]:
    """The weights ``star: [T]`` of every row for this arm; those of a row that the arm leaves out are all zero."""
    if arm.method in WITHOUT_VERDICTS:
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
    """Fine-tune a copy of the policy; returns it with the curves of its training."""
    torch.manual_seed(recipe.seed)
    model = policy.copy_to_train(recipe.layers)
    frozen = 0 if rows[0].frozen is None else len(stack(model)) - (recipe.layers or len(stack(model)))
    with without_lower_layers(model, frozen):
        curves = _train(policy, model, rows, stars, arm, recipe, progress)
    return model.eval(), curves


def _train(
    policy: Policy,
    model: Any,
    rows: Sequence[Row],
    stars: Sequence[Tensor],
    arm: Arm,
    recipe: Recipe,
    progress: Callable[[float], object],
) -> Curves:
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup))
    curves = Curves()
    for step, batch in enumerate(batches([row.kind for row in rows], recipe)):
        if arm.method == "rs":
            batch = [i for i in batch if stars[i].any()]
        if not batch:
            progress(0.0)
            continue  # the filter rejected every row of this step
        batch.sort(key=lambda i: len(rows[i].input_ids))
        items, total = sum(len(rows[i].parts) for i in batch), 0.0
        most = len(batch) if len(batch) <= FEW else (len(batch) + 1) // 2
        seen: dict[str, list[float]] = {}
        for members in filter(None, (batch[:most], batch[most:])):  # short rows, then long ones: less padding
            chosen = [rows[i] for i in members]
            loss, token_ce = _loss(policy, model, chosen, [stars[i] for i in members], arm, recipe, items)
            loss.backward()
            total += loss.item()
            for part, value in _by_part(token_ce, chosen):
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
    return curves


def batches(kinds: Sequence[str], recipe: Recipe) -> list[list[int]]:
    """The row numbers of each step: half benign and half poisoned rows; no row comes twice before all came once."""
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


def _hidden(policy: Policy, model: Any, rows: Sequence[Row]) -> Tensor:
    """Last hidden states ``[B, T, D]``. Where rows hold the frozen layers' outputs, ``model`` lacks those layers."""
    mask = _stack([torch.ones(len(row.input_ids), dtype=torch.long) for row in rows], policy.device)
    if rows[0].frozen is None:
        ids = _stack([torch.tensor(row.input_ids) for row in rows], policy.device, policy.pad_token_id)
        given = {"input_ids": ids}
    else:
        given = {"inputs_embeds": _stack([row.frozen for row in rows if row.frozen is not None], policy.device)}
    hidden: Tensor = backbone(model)(**given, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden


def _loss(
    policy: Policy, model: Any, rows: Sequence[Row], stars: Sequence[Tensor], arm: Arm, recipe: Recipe, items: int
) -> tuple[Tensor, Tensor]:
    """This micro-batch's share of the step's loss, and the cross-entropies ``[B, T]``, at the predicting positions."""
    device, head, start = policy.device, lm_head(model), lm_head(policy.model)
    full = arm.kl in FULL_KL
    labels = _stack([torch.tensor(row.labels) for row in rows], device, IGNORE)
    known = None if full else _stack([row.ref_logprobs for row in rows], device)
    how: dict[str, Any] = {"shift": True, "bias": head.bias, "logit_scale": head.logit_scale, "softcap": head.softcap}
    with policy.autocast():
        hidden = _hidden(policy, model, rows)
        out = dss_loss(
            hidden,
            head.weight,
            labels,
            _stack(stars, device),
            ref_logprobs=known,
            ref_hidden=_stack([row.ref_hidden for row in rows], device) if full else None,
            ref_lm_head=start.weight if full else None,
            ref_bias=start.bias if full else None,
            kl=arm.kl or "k2",
            kl_scale=recipe.kl_scale,
            dft=arm.method == "dft",
            csft_beta=constrained_strengths(labels) if arm.method == "constrained" else None,
            num_items_in_batch=items,
            **how,
        )
    return out.loss, out.token_ce


def constrained_strengths(labels: Tensor) -> Tensor:
    """Constrained SFT's beta at each label, by its place in the response. labels: [B, T]."""
    place = (labels != IGNORE).cumsum(-1)
    return torch.where(place == 1, FIRST, torch.where(place <= EARLY_TOKENS, EARLY, LATER))


def _by_part(token_ce: Tensor, rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """For each label the part of the response in which it lies, and its cross-entropy."""
    for values, row in zip(token_ce.cpu(), rows, strict=True):
        counted = torch.tensor(row.labels[1:]) != IGNORE
        yield from zip(row.parts, values[: len(counted)][counted].tolist(), strict=True)


def _stack(tensors: Sequence[Tensor], device: torch.device, padding: float = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=padding).to(device)
