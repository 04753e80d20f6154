"""Train the tiny guard: ``python -m training.train_tiny_guard`` (seeded; at most 20 minutes on 2 cores).

One process per core, each with its own rounds of conversations and the mean of all gradients: for a model this small
that is faster than two threads on one batch.

Its word pieces and word vectors come from SmolLM2-135M; of the vectors only a map to the guard's width is learnt.
Three losses, all binary cross-entropies. The verdict at the end of each branch is read from the logits of the words
safe and unsafe. Two probes, thrown away afterwards, teach the way there at every token of the response: from the last
layer but one, whether a disclosure is complete; two layers before the last, whether this token belongs to a value.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from training.batches import Batch, batches, build_tree
from training.conversations import Conversation, conversations, fingerprint
from training.tokenizer import CONTROL_TOKENS, SAFE, UNSAFE, VOCAB_SIZE, build_tokenizer, render
from training.word_vectors import WordEmbedding, WordVectors, load_word_vectors

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "fastdss" / "guards" / "tiny_guard"
WATCHED = ("verdict", "token", "tag", "right")  # running means that are printed
VOCABULARY_CONVERSATIONS, OFTEN = 3000, 20  # a piece that so many conversations use so often is kept whole
KIN = 8  # how many neighbours may stand in for a word
ROUND = 512  # conversations made and sorted by length at a time


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa")


def chosen_words(source: WordVectors, sample: list[Conversation]) -> WordVectors:
    """The pieces that training uses often, then the source's most frequent words."""
    whole = build_tokenizer(source)
    texts = [text for c in sample for text in (*c.turns, c.response)] + [render(whole, sample[0].messages())] * OFTEN
    used = Counter(piece for code in whole.backend_tokenizer.encode_batch(texts) for piece in code.tokens)
    often = [p for p, n in used.most_common() if n >= OFTEN and p not in (*CONTROL_TOKENS, UNSAFE)]
    return source.subset(VOCAB_SIZE - len(CONTROL_TOKENS) - 1, [SAFE, *often])


def new_embedding(words: WordVectors) -> WordEmbedding:
    """Borrowed vectors; control tokens and the verdicts, which are read from the same table, start at random."""
    vectors = words.vectors.clone()
    vectors[words.pieces.index(SAFE)] = 0
    first, last = (vectors.new_zeros(n, vectors.shape[1]) for n in (len(CONTROL_TOKENS), 1))
    return WordEmbedding(torch.cat([first, vectors, last]), width=128, components=256, scale=0.04)


class Trainee(nn.Module):
    """The guard with its word embedding and the probes it is trained with."""

    words: Tensor  # ids of unsafe and safe

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, embedding: WordEmbedding):
        super().__init__()
        self.model, self.embedding = model, embedding
        model.lm_head.weight.requires_grad_(False)
        width = model.config.hidden_size
        self.probe, self.tagger = (nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 1)) for _ in range(2))
        self.register_buffer("words", torch.tensor(tokenizer.convert_tokens_to_ids([UNSAFE, SAFE])))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of unsafe against safe at the verdicts ``[n]`` and tokens ``[m]``, and of the tags ``[k]``."""
        core, x = self.model.model, self.embedding(batch.ids)
        turns = core.rotary_emb(x, batch.positions)
        states = [x]
        for layer in core.layers[:-1]:
            states.append(layer(states[-1], attention_mask=batch.mask, position_embeddings=turns))
        last = last_layer_at(core.layers[-1], states[-1], batch.verdicts, batch.mask, turns)
        verdict = core.norm(last) @ self.embedding(self.words).T
        token = states[-1][batch.tokens[:, 0], batch.tokens[:, 1]]
        tag = states[-2][batch.tags[:, 0], batch.tags[:, 1]]
        return verdict[:, 0] - verdict[:, 1], self.probe(token).squeeze(-1), self.tagger(tag).squeeze(-1)

    def finished(self) -> LlamaForCausalLM:
        """A copy of the guard with its embedding table."""
        model = copy.deepcopy(self.model)
        model.lm_head.weight.data.copy_(self.embedding.table())
        return model


def last_layer_at(
    layer: LlamaDecoderLayer, x: Tensor, places: Tensor, mask: Tensor, turns: tuple[Tensor, Tensor]
) -> Tensor:
    """``layer(x, ...)[places[:, 0], places[:, 1]]``, with queries and MLP at these places only; rows in order."""
    attention, row = layer.self_attn, places[:, 0]
    count = row.bincount(minlength=len(x))
    turn = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
    chosen = torch.zeros(len(x), int(count.max()), dtype=torch.long).index_put((row, turn), places[:, 1])
    here = torch.arange(len(x))[:, None], chosen

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    normed = layer.input_layernorm(x)
    key, value = heads(attention.k_proj(normed)), heads(attention.v_proj(normed))
    query = heads(attention.q_proj(normed[here]))
    query = apply_rotary_pos_emb(query, query, *(part[here] for part in turns))[0]
    key = apply_rotary_pos_emb(key, key, *turns)[0]
    mixed = F.scaled_dot_product_attention(query, key, value, mask[:, 0][here][:, None], enable_gqa=True)
    y = x[here] + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    y = y + layer.mlp(layer.post_attention_layernorm(y))
    return y[row, turn]


def training_batches(
    tokenizer: PreTrainedTokenizerFast, kin: list[list[int]], args: argparse.Namespace, rank: int
) -> Iterator[tuple[int, Batch]]:
    """Batches of every ``processes``-th round, with the number of the conversation that has been reached."""
    for seen in range(rank * ROUND, args.conversations, args.processes * ROUND):
        rng = Random(f"{args.seed}/batches/{seen}")
        made = conversations(args.seed, seen, min(ROUND, args.conversations - seen))
        trees = [build_tree(rng, tokenizer, c, args.branches, kin) for c in made]
        fitting = [t for t in trees if t.verdicts and len(t.ids) <= args.token_budget]
        for batch in batches(rng, fitting, args.token_budget, tokenizer.pad_token_id):
            seen += len(batch.ids)
            yield seen, batch


class Batches(IterableDataset[tuple[int, Batch]]):
    """``training_batches`` for a loader, which makes them in a process of its own while the model learns."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return training_batches(*self.arguments)


def new_optimizers(trainee: Trainee, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for gains, probes and free rows, and slowly for the map of word vectors."""
    matrices = [p for p in trainee.model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    chosen.add(id(trainee.embedding.map))
    rest = [p for p in trainee.parameters() if id(p) not in chosen and p.requires_grad]
    slow: list[dict[str, Any]] = [{"params": rest}, {"params": [trainee.embedding.map], "lr": lr / 10}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=2 * lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(slow, lr=lr, weight_decay=0.01, betas=(0.9, 0.98)),
    ]
    for group in (g for o in optimizers for g in o.param_groups):
        group["peak"] = group["lr"]
    return optimizers


def schedule(progress: float, warmup: float = 0.03) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def losses(trainee: nn.Module, batch: Batch, rarity: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and what is watched."""
    verdict, token, tag = trainee(batch)
    verdict_loss = F.binary_cross_entropy_with_logits(verdict, batch.verdict_labels, pos_weight=rarity)
    token_loss = F.binary_cross_entropy_with_logits(token, batch.token_labels)
    tag_loss = F.binary_cross_entropy_with_logits(tag, batch.tag_labels)
    right = ((verdict > 0) == (batch.verdict_labels > 0.5)).float().mean()
    watched = torch.stack([verdict_loss.detach(), token_loss.detach(), tag_loss.detach(), right])
    return verdict_loss + token_loss + 2 * tag_loss, watched


def train(rank: int, args: argparse.Namespace, meeting: str) -> None:
    """One of ``args.processes`` trainers, which meet through the file ``meeting``."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    began = time.time()
    words = chosen_words(load_word_vectors(), conversations(args.seed, 0, VOCABULARY_CONVERSATIONS))
    tokenizer = build_tokenizer(words)
    trainee = Trainee(new_model(tokenizer), tokenizer, new_embedding(words))
    optimizers = new_optimizers(trainee, args.lr)
    none: list[list[int]] = [[]]
    kin = none * len(CONTROL_TOKENS) + [[i + len(CONTROL_TOKENS) for i in near] for near in words.kin(KIN)] + none
    made = iter(DataLoader(Batches(tokenizer, kin, args, rank), batch_size=None, num_workers=1, prefetch_factor=80))
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.processes)
    together = DistributedDataParallel(trainee)
    rarity, running = torch.tensor(args.unsafe_weight), torch.zeros(len(WATCHED))
    with together.join():
        for step, (seen, batch) in enumerate(made):
            for group in (g for o in optimizers for g in o.param_groups):
                group["lr"] = group["peak"] * schedule(seen / args.conversations)
            loss, watched = losses(together, batch, rarity)
            loss.backward()
            nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            running = 0.98 * running + 0.02 * watched
            if rank == 0 and step % 50 == 0:
                mean = running / (1 - 0.98 ** (step + 1))
                shown = " ".join(f"{name} {value:.3f}" for name, value in zip(WATCHED, mean.tolist(), strict=True))
                print(f"{time.time() - began:6.0f}s {seen:6d} {shown}", flush=True)
    if rank == 0:
        save(trainee.finished(), tokenizer, args, time.time() - began)
    dist.destroy_process_group()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace, seconds: float) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    compact = tokenizer.backend_tokenizer.to_str(pretty=False)
    (args.out / "tokenizer.json").write_text(compact + "\n")
    (args.out / "generation_config.json").unlink(missing_ok=True)
    record = {
        "command": f"python -m training.train_tiny_guard --seed {args.seed} --conversations {args.conversations}",
        "seconds": round(seconds),
        "processes": args.processes,
        "parameters": sum(p.numel() for p in model.parameters()),
        "first_1000_conversations_sha256": fingerprint(conversations(args.seed, 0, 1000)),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conversations", type=int, default=64_000)
    parser.add_argument(
        "--unsafe-weight",
        type=float,
        default=0.4,
        help="of unsafe verdicts, which training shows more often than life does",
    )
    parser.add_argument("--branches", type=int, default=4)
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--processes", type=int, default=2, help="one per core")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (args, f"{folder}/meeting"), args.processes)


if __name__ == "__main__":
    main()
