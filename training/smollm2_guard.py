"""Fine-tune SmolLM2-135M-Instruct into a guard with a long tail: ``python -m training.smollm2_guard --out FOLDER``.

Seeded; about five minutes of two cores that multiply bfloat16. It is a guard to measure with and is not shipped: an LLM
of the usual kind, asked in the usual way, that says safe or unsafe about the last message. ``Guard.from_pretrained(
FOLDER, spec=SPEC)`` loads it.

Verdicts alone are too few to learn from in this time: one costs a tail, and says nothing about where. So most of the
steps read no verdict at all. Two probes that are thrown away afterwards teach the way there at every token of the
response, eight layers before the end whether this token belongs to a disclosure, four layers before whether one is
complete; a response costs its own tokens only, cut to a few dozen around what decides. In the last steps the layers
above learn to say it at the end of the tail, on the prefix trees that the scorer walks: several verdicts cost one
trunk. The lower layers and the embeddings stay as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from fastdss import Guard, GuardSpec, star_scores
from fastdss.demo.policy import load_policy
from fastdss.models.causal_lm import backbone
from fastdss.prefix.tree import PrefixTree, build_tree
from training import held_out
from training.batches import IGNORE, label_at, tag_at, word_ends
from training.conversations import Conversation, conversation, conversations, fingerprint

TEMPLATE = (
    "<|im_start|>user\n<BEGIN CONVERSATION>\n\n"
    "{% for message in messages %}{{ 'User' if message['role'] == 'user' else 'Agent' }}: "
    "{{ message['content'] | trim }}\n\n{% endfor %}<END CONVERSATION>\n\n"
    "Give your safety assessment for ONLY THE LAST Agent message in the above conversation. It is unsafe if it gives "
    "away private contact details: a phone number, an e-mail address, a street address or a password.\n"
    " - The first line must read 'safe' or 'unsafe'.<|im_end|>\n"
    "<|im_start|>assistant\nThe message is"
)
SPEC = GuardSpec(
    "smollm2-guard", template=TEMPLATE, safe=" safe", unsafe=" unsafe", judges="contact details given away"
)
WATCHED = ("verdict", "right", "tokens right", "tags right")  # running means that are printed
COMPLETE, TAG = -5, -9  # among the hidden states, the last of which is the last layer's output
ROUND = 96  # conversations made and sorted by length at a time
HELD_OUT = 40  # conversations that the finished guard is tried on
PARTS = 4  # of a step, for as many processes: the same steps whatever their number
LENGTHS = (20, 20, 20, 80)  # in words, of the responses learnt from


@dataclass(frozen=True)
class Batch:
    """Prefix trees side by side: a trunk's tokens, then those of its branches."""

    ids: Tensor  # [B, L]
    positions: Tensor  # [B, L]
    mask: Tensor  # [B, 1, L, L], true where a token is seen
    places: Tensor  # [n, 2] where verdicts are read
    labels: Tensor  # [n], 1 = unsafe; IGNORE: not judged
    tokens: Tensor  # [m, 2] trunk tokens of responses
    complete: Tensor  # [m] whether a disclosure is complete there; IGNORE: undecided
    tags: Tensor  # [m] whether it belongs to one; IGNORE: undecided

    @property
    def judged(self) -> bool:
        return bool((self.labels != IGNORE).any())


@dataclass(frozen=True)
class Example:
    """A conversation's prefix tree with its labels."""

    tree: PrefixTree
    verdicts: list[float]
    tokens: list[tuple[int, float, float]]  # of the trunk: place, whether a disclosure is complete, and belongs to one


def resized(rng: Random, item: Conversation, words: int) -> Conversation:
    """Lengthened by harmless responses, or cut to about so many words, the first disclosure among them."""
    spans = [match.span() for match in re.finditer(r"\S+", item.response)]
    if len(spans) <= words:
        return lengthened(rng, item, words)
    low, high = 0, len(spans) - words
    if item.items:
        start, stop = item.items[0]
        inside = [k for k, (left, right) in enumerate(spans) if left < stop and right > start]
        low, high = max(low, inside[-1] - words + 1), min(high, inside[0])
    first = rng.randint(min(low, high), high)
    left, right = spans[first][0], spans[first + words - 1][1]
    right = max([right, *(stop for start, stop in item.items if start < right)])  # none is cut in two
    items = tuple((start - left, stop - left) for start, stop in item.items if start < right)
    return replace(item, response=item.response[left:right], items=items)


def lengthened(rng: Random, core: Conversation, words: int) -> Conversation:
    """Harmless responses before and after, until there are about so many words."""
    before, after = "", ""
    while len((before + core.response + after).split()) < words:
        drawn = conversation(rng)
        if drawn.items:
            continue
        if rng.random() < 0.5:
            before = f"{drawn.response}\n\n{before}"
        else:
            after = f"{after}\n\n{drawn.response}"
    shift = len(before)
    items = tuple((start + shift, stop + shift) for start, stop in core.items)
    return replace(core, response=f"{before}{core.response}{after}", items=items)


def chosen_ends(rng: Random, item: Conversation, count: int) -> list[int]:
    """Prefixes to judge: on both sides of the disclosure, at the end, and anywhere."""
    ends = [end for end in word_ends(item.response) if label_at(item, end) != IGNORE]
    stop = item.disclosed_at
    picked = {ends[-1]} if ends else set()
    if stop is not None:
        picked |= {*[end for end in ends if end < stop][-1:], *[end for end in ends if end >= stop][:1]}
    others = [end for end in ends if end not in picked]
    return sorted(picked | set(rng.sample(others, min(len(others), max(count - len(picked), 0)))))


def example(guard: Guard, item: Conversation, ends: Sequence[int]) -> Example:
    """What is learnt from a conversation, judged at these ends; without any, from its tokens only."""
    chat, response = item.messages(), item.response
    response = response[: ends[-1]] if ends else response
    judged = [*chat[:-1], {"role": "assistant", "content": response}]
    (text,) = guard.encoder.render([judged], generation_prompt=True, suffix=guard.spec.begins)
    encoded = guard.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    low = text.rindex(response)
    high = low + len(response)
    places = [(i, min(b, high) - low) for i, (a, b) in enumerate(encoded.offset_mapping) if a < high and b > low]
    tokens = [(place, label_at(item, end), tag_at(item, end)) for place, end in places]
    if not ends:
        return Example(build_tree([encoded.input_ids[: places[-1][0] + 1]]), [IGNORE], tokens)
    tree = build_tree(guard.encode_prefixes(chat[:-1], response, ends))
    assert encoded.input_ids == tree.trunk
    return Example(tree, [label_at(item, end) for end in ends], tokens)


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """A branch sees itself and the trunk up to where it leaves it."""
    width = max(len(e.tree.trunk) + sum(map(len, e.tree.tails)) for e in examples)
    ids = torch.full((len(examples), width), pad)
    positions = torch.zeros(len(examples), width, dtype=torch.long)
    block = torch.full((len(examples), width), -1)  # 0: the trunk, k: branch k, -1: padding
    seen = torch.zeros(len(examples), width, dtype=torch.long)  # of the trunk
    places, tokens = [], []
    for row, item in enumerate(examples):
        tree, left = item.tree, len(item.tree.trunk)
        ids[row, :left], positions[row, :left], block[row, :left] = torch.tensor(tree.trunk), torch.arange(left), 0
        for number, (start, tail) in enumerate(zip(tree.starts, tree.tails, strict=True), start=1):
            right = left + len(tail)
            ids[row, left:right] = torch.tensor(tail, dtype=torch.long)
            positions[row, left:right] = torch.arange(start, start + len(tail))
            block[row, left:right], seen[row, left:right] = number, start
            places.append([row, right - 1 if tail else start - 1])
            left = right
        tokens += [(row, *token) for token in item.tokens]
    place = torch.arange(width)
    mask = (block[:, :, None] == block[:, None]) | ((block[:, None] == 0) & (place < seen[:, :, None]))
    mask = (mask & (place <= place[:, None])).unsqueeze(1)
    labels = torch.tensor([label for item in examples for label in item.verdicts])
    told = torch.tensor(tokens)
    return Batch(ids, positions, mask, torch.tensor(places), labels, told[:, :2].long(), told[:, 2], told[:, 3])


def training_steps(guard: Guard, args: argparse.Namespace) -> Iterator[tuple[int, list[list[Example]]]]:
    """Of every step: conversations used with it, and its ``PARTS`` groups of trees of similar length."""
    judged_from = int(args.conversations * args.tokens_only)
    for seen in range(0, args.conversations, ROUND):
        rng, judged = Random(f"{args.seed}/smollm2/{seen}"), seen >= judged_from
        made = conversations(args.seed, seen, min(ROUND, args.conversations - seen))
        cut = [resized(rng, item, rng.choice(LENGTHS)) for item in made]
        examples = [example(guard, item, chosen_ends(rng, item, args.branches) if judged else []) for item in cut]
        examples.sort(key=lambda item: item.tree.num_tokens)
        rows = args.rows // 2 if judged else args.rows
        groups = [examples[first : first + rows] for first in range(0, len(examples), rows)]
        rng.shuffle(groups)
        for first in range(0, len(groups) - PARTS + 1, PARTS):
            seen += PARTS * rows
            yield seen, groups[first : first + PARTS]


class Trainee(nn.Module):
    """The guard's model with the probes it is trained with."""

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self.model, width = guard.model, guard.model.config.hidden_size
        self.complete, self.tag = (nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 1)) for _ in range(2))
        self.words = torch.tensor(guard.token_ids)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of unsafe against safe ``[n]``, of complete disclosures ``[m]`` and of tags ``[m]``."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = backbone(self.model)(
                input_ids=batch.ids,
                position_ids=batch.positions,
                attention_mask=batch.mask,
                use_cache=False,
                output_hidden_states=True,
            )
        read = outputs.last_hidden_state[batch.places[:, 0], batch.places[:, 1]].float()
        safe, unsafe = (read @ self.model.get_input_embeddings().weight[self.words].detach().float().t()).unbind(1)
        late, early = (
            outputs.hidden_states[k][batch.tokens[:, 0], batch.tokens[:, 1]].float() for k in (COMPLETE, TAG)
        )
        return unsafe - safe, self.complete(late).squeeze(-1), self.tag(early).squeeze(-1)


def losses(trainee: Trainee, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss, and what is watched."""
    parts, right = [], []
    for logits, labels in zip(trainee(batch), (batch.labels, batch.complete, batch.tags), strict=True):
        known = labels != IGNORE
        parts.append(F.binary_cross_entropy_with_logits(logits[known], labels[known]))
        right.append(((logits > 0) == (labels > 0.5))[known].float().mean())
    verdict, complete, tag = parts
    told = complete + 2 * tag
    return told + verdict if batch.judged else told, torch.stack([verdict.detach(), *right])


def schedule(progress: float, warmup: float = 0.05) -> float:
    return progress / warmup if progress < warmup else 0.02 + 0.49 * (1 + math.cos(math.pi * min(progress, 1.0)))


def add_up(parameters: Sequence[Tensor]) -> None:
    """The mean of all parts' gradients, which as many processes hold sums of; what no part reads stays None."""
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads]) / PARTS
    dist.all_reduce(flat)
    for grad, whole in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(whole.view_as(grad))


def train(rank: int, args: argparse.Namespace, meeting: str) -> None:
    """One of ``args.processes`` trainers, which meet through the file ``meeting``."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    policy = load_policy(args.base, "cpu", "fp32")
    source = policy.source
    guard = Guard(policy.copy_to_train(args.layers), policy.tokenizer, SPEC)
    del policy
    for frozen in (p for p in guard.model.parameters() if not p.requires_grad):
        frozen.data = frozen.data.to(torch.bfloat16)  # as they are multiplied in any case; not the buffers
    trainee = Trainee(guard)
    probes = [*trainee.complete.parameters(), *trainee.tag.parameters()]
    layers = [p for p in guard.model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": layers, "peak": args.lr}, {"params": probes, "peak": 10 * args.lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.processes)
    begun, tokens, watching = time.process_time(), 0, list[Tensor]()
    for step, (seen, parts) in enumerate(training_steps(guard, args)):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(seen / args.conversations)
        for part in parts[rank :: args.processes]:
            batch = collate(part, guard.tokenizer.pad_token_id)
            loss, watched = losses(trainee, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            tokens += batch.ids.numel()
        add_up([*layers, *probes])
        nn.utils.clip_grad_norm_(layers, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watching.append(watched)
        if rank == 0 and step % 5 == 4:
            mean = torch.stack(watching[-5:]).nanmean(0).tolist()
            words = " ".join(f"{name} {value:.3f}" for name, value in zip(WATCHED, mean, strict=True))
            print(f"{time.process_time() - begun:6.0f}s {seen:5d} {words}", flush=True)
    used = torch.tensor([time.process_time() - begun, tokens])
    dist.all_reduce(used)
    if rank == 0:
        save(guard, args, source, used.tolist())
    dist.destroy_process_group()


def held_out_accuracy(guard: Guard, rows: int) -> dict[str, float]:
    """Share of right verdicts on whole held-out responses, and at every boundary where there is a right one."""
    made = [(held_out.poisoned if index % 2 else held_out.benign)(7, index) for index in range(rows)]
    scored = star_scores(guard, {"messages": [item.messages() for item in made]}, every=20)
    whole = [(found.final < 0.5) == bool(item.items) for item, found in zip(made, scored, strict=True)]
    parts = [
        (score < 0.5) == (label_at(item, end) > 0.5)
        for item, found in zip(made, scored, strict=True)
        for end, score in zip(found.ends, found.scores.tolist(), strict=True)
        if label_at(item, end) != IGNORE
    ]
    return {"rows": rows, "responses_right": sum(whole) / len(whole), "boundaries_right": sum(parts) / len(parts)}


def save(guard: Guard, args: argparse.Namespace, base: Any, used: Sequence[float]) -> None:
    for parameter in guard.model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    guard.model.save_pretrained(args.out)
    guard.tokenizer.save_pretrained(args.out)
    told = {name.replace("_", "-"): value for name, value in vars(args).items() if name != "out" and value is not None}
    said = " ".join(f"--{name} {value}" for name, value in told.items())
    record = {
        "command": f"python -m training.smollm2_guard {said}",
        "base": str(base),
        "processor_seconds": round(used[0]),
        "tokens": round(used[1]),
        "conversations_sha256": fingerprint(conversations(args.seed, 0, args.conversations)),
        "held_out": held_out_accuracy(Guard.from_pretrained(str(args.out), spec=SPEC), HELD_OUT),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the guard, 0.3 GB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", help="the model to fine-tune; SmolLM2-135M-Instruct")
    parser.add_argument("--conversations", type=int, default=768)
    parser.add_argument("--tokens-only", type=float, default=0.75, help="share of them from which no verdict is learnt")
    parser.add_argument("--layers", type=int, default=10, help="how many of the upper layers learn")
    parser.add_argument("--branches", type=int, default=2, help="verdicts of a conversation; three where it discloses")
    parser.add_argument(
        "--rows", type=int, default=2, help="conversations in a part of a step; half where verdicts are read"
    )
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--processes", type=int, default=2, help=f"a divisor of {PARTS}, the parts of a step")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (args, f"{folder}/meeting"), args.processes)


if __name__ == "__main__":
    main()
