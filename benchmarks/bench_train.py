"""What a training step costs: plain SFT, the released STAR-DSS, and fastdss, on the same model, batch and machine.

    python benchmarks/bench_train.py                          # a model of SmolLM2-135M's shape, on a CPU
    python benchmarks/bench_train.py --model smollm2          # SmolLM2-135M-Instruct itself, as the demo finds it
    python benchmarks/bench_train.py --layers 4 --threads 1   # 4 layers of its shape, on a busy machine
    python benchmarks/bench_train.py --head-only --tokens 8192 --hidden 4096 --vocab 128256   # Llama-3-8B's head
    python benchmarks/bench_train.py --model smollm2 --head-only --tokens 2048    # SmolLM2's head on English prose

Times: one process, rounds of all variants in turn, by the clock and by processor time, which other jobs change less.
Memory: a process for each variant, its peak over two steps. ``--only times`` or ``--only memory`` measures one of them:
with --model smollm2 on two idle cores 4 minutes (--rounds 2), or 3. One JSON line per variant goes to
benchmarks/results/train.jsonl. Compare variants of one run only.

sft             fused cross-entropy, no weights: the floor
released        full logits of policy and reference in fp32, as the paper's code has it
trl             TRL's fused head for both log-probabilities, k2 on top (where trl is installed)
fastdss         DSS with ref_logprobs computed before training, entropies and accuracy told as the trainers log them
fastdss-filter  the same with grad_tol=2**-10, on SmolLM2 only: random weights leave no column of dZ empty
fastdss-live    DSS (reverse KL) against a live reference's hidden states

SmolLM2 reads English prose (Python's language reference), the random model random tokens.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from environment import commit
from loss_methods import prose, smollm2_on_prose
from torch import Tensor

from fastdss.demo.policy import load_policy
from fastdss.loss.functional import dss_loss, live_rows, token_logprobs, weighted_ce
from fastdss.train.enable import enable_dss

RESULTS = Path(__file__).parent / "results"
VARIANTS = ("sft", "released", "trl", "fastdss", "fastdss-filter", "fastdss-live")
GRAD_TOL = 2**-10
Step = Callable[[], Tensor]


def released_loss(logits: Tensor, ref_logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Equation 3 on full fp32 logits ``[N, V]`` of both models, as the paper's code computes it."""
    log_p, log_q = F.log_softmax(logits.float(), -1), F.log_softmax(ref_logits.float(), -1)
    counts = labels != -100
    at = labels.clamp(min=0)[:, None]
    logp, ref = log_p.gather(-1, at)[:, 0], log_q.gather(-1, at)[:, 0]
    token = weights * -logp + (1 - weights) * 0.5 * (logp - ref) ** 2 / 2
    return token[counts].sum() / counts.sum()


def head_steps(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Step]]:
    """Steps of the loss alone, from hidden states to the gradients of hidden states and head."""
    made = torch.Generator(device).manual_seed(0)
    new = lambda *shape: torch.randn(*shape, device=device, generator=made)  # noqa: E731
    if args.model == "smollm2":
        hidden, head, labels = (t.to(device, copy=True) for t in smollm2_on_prose(args.tokens))
    else:
        hidden, head = new(args.tokens, args.hidden), new(args.vocab, args.hidden) / args.hidden**0.5
        labels = torch.randint(0, args.vocab, (args.tokens,), device=device, generator=made)
    ref_hidden = (hidden + 0.1 * hidden.std() * new(*hidden.shape)).to(dtype)
    hidden, head = (t.to(dtype).requires_grad_() for t in (hidden, head))
    ref_head = head.detach().clone()
    weights = torch.rand(args.tokens, device=device, generator=made)
    ref_logprobs = token_logprobs(ref_hidden, ref_head, labels)
    rows = live_rows(labels.cpu(), weights.cpu(), kl_scale=0.5)
    rows = rows.to(device)

    def released() -> Tensor:
        with torch.no_grad():
            reference = F.linear(ref_hidden, ref_head)
        return released_loss(F.linear(hidden, head), reference, labels, weights)

    def fused(**options: Any) -> Tensor:
        return dss_loss(hidden, head, labels, weights, rows=rows, **options).loss

    losses: dict[str, Step] = {
        "sft": lambda: weighted_ce(hidden, head, labels, rows=rows),
        "released": released,
        "fastdss": lambda: fused(ref_logprobs=ref_logprobs),
        "fastdss-filter": lambda: fused(ref_logprobs=ref_logprobs, grad_tol=GRAD_TOL),
        "fastdss-live": lambda: fused(ref_hidden=ref_hidden, ref_lm_head=ref_head, kl="reverse"),
    }

    def step(loss: Step) -> Step:
        def run() -> Tensor:
            hidden.grad = head.grad = None
            value = loss()
            value.backward()
            return value.detach()

        return run

    return {name: lambda loss=loss: step(loss) for name, loss in losses.items() if _possible(name, args)}


def model_steps(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Step]]:
    """Whole steps of full fine-tuning: forward, backward and SGD (an optimiser's state would be the same for all)."""
    batch = make_batch(args, device)
    plain = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels, weights = batch["labels"][:, 1:].reshape(-1), batch["token_weights"][:, 1:].reshape(-1)

    def setup(kind: str) -> Step:
        policy = load(args.model, args.layers).to(device).train()
        reference = (
            load(args.model, args.layers).to(device).eval() if kind in ("released", "trl", "fastdss-live") else None
        )
        autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
        loss = _model_loss(kind, policy, reference, batch, plain, labels, weights)
        optimizer = torch.optim.SGD(policy.parameters(), lr=1e-6)

        def run() -> Tensor:
            with autocast:
                value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            return value.detach()

        return run

    return {kind: lambda kind=kind: setup(kind) for kind in VARIANTS if _possible(kind, args)}


def _model_loss(
    kind: str, policy: Any, reference: Any, batch: dict, plain: dict, labels: Tensor, weights: Tensor
) -> Step:
    known = {"rows": batch["rows"], "kl_rows": batch["kl_rows"], "labels": batch["labels"]}
    shaped = known | {"token_weights": batch["token_weights"], "token_stats": True}  # as the trainers ask
    if kind == "released":

        def released() -> Tensor:
            with torch.no_grad():
                ref_logits = reference(**plain, use_cache=False).logits[:, :-1].flatten(0, 1)
            logits = policy(**plain, use_cache=False).logits[:, :-1].flatten(0, 1)
            return released_loss(logits, ref_logits, labels, weights)

        return released
    if kind == "trl":
        return _trl_loss(policy, reference, batch, plain)
    if kind == "sft":  # weights of one and no KL: the same fused cross-entropy
        enable_dss(policy, kl_scale=0.0)
        ones = torch.ones_like(batch["token_weights"])
        return lambda: policy(**plain, **known, token_weights=ones).loss
    if kind in ("fastdss", "fastdss-filter"):
        enable_dss(policy, grad_tol=GRAD_TOL if kind == "fastdss-filter" else None)
        with torch.no_grad():
            ref = policy(**plain, labels=batch["labels"], dss_ask="logprobs").logprobs
        return lambda: policy(**plain, **shaped, ref_logprobs=ref).loss
    enable_dss(policy, kl="reverse")
    enable_dss(reference)

    def live() -> Tensor:
        with torch.no_grad():
            hidden = reference(**plain, dss_ask="hidden").hidden
        given = {"ref_hidden": hidden, "ref_lm_head": reference.get_output_embeddings().weight}
        return policy(**plain, **shaped, **given).loss

    return live


def _trl_loss(policy: Any, reference: Any, batch: dict, plain: dict) -> Step:
    from trl.trainer.utils import add_fused_lm_head

    for model in (policy, reference):
        add_fused_lm_head(model)
    labels, weights = batch["labels"], batch["token_weights"][:, 1:]

    def loss() -> Tensor:
        with torch.no_grad():
            ref = reference(**plain, labels=labels, fused_lm_head=True).log_probs
        output = policy(**plain, labels=labels, fused_lm_head=True)
        token = weights * -output.log_probs + (1 - weights) * 0.5 * (output.log_probs - ref) ** 2 / 2
        return (token * output.label_mask).sum() / output.label_mask.sum()

    return loss


def _possible(kind: str, args: argparse.Namespace) -> bool:
    if kind == "trl":
        return importlib.util.find_spec("trl") is not None
    return kind != "fastdss-filter" or args.model == "smollm2"


def make_batch(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Rows of one length, the first third a prompt."""
    made = torch.Generator().manual_seed(0)
    shape = (args.tokens // args.length, args.length)
    if args.model == "smollm2":
        ids = prose(packaged_smollm2().tokenizer, args.tokens).view(shape)
    else:
        ids = torch.randint(10, 10_000, shape, generator=made)
    labels = ids.clone()
    labels[:, : args.length // 3] = -100
    weights = torch.rand(shape, generator=made)
    live = live_rows(labels, weights, kl_scale=0.5, shift=True)
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    batch |= {"token_weights": weights, "rows": live.index}
    return {name: value.to(device) for name, value in batch.items()} | {"kl_rows": live.kl_rows}


@functools.cache
def packaged_smollm2() -> Any:
    """Read once: unpacking its 4-bit weights takes longer than a step."""
    return load_policy(None, "cpu", "fp32")


def load(name: str | None, layers: int) -> Any:
    """The named model, or one with the shape of SmolLM2-135M and random weights: time does not depend on them."""
    if name == "smollm2":
        return copy.deepcopy(packaged_smollm2().model)
    if name is not None:
        return transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def current_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(args: argparse.Namespace) -> None:
    """In a child process: peak memory of ``--memory-of`` alone, or the times of all variants in alternating rounds."""
    device = torch.device(args.device)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.precision]
    makers = (head_steps if args.head_only else model_steps)(args, device, dtype)
    chosen = [name for name in args.variants.split(",") if name in makers]
    if args.memory_of:
        if args.memory_of not in makers:
            return
        step = makers[args.memory_of]()
        gc.collect()
        before = current_bytes(device)
        step(), step()
        print(json.dumps({"peak": peak_bytes(device), "before": before}))
        return
    steps = {name: makers[name]() for name in chosen}
    times: dict[str, list[float]] = {name: [] for name in steps}
    worked: dict[str, list[float]] = {name: [] for name in steps}
    last = {}
    for round_number in range(args.rounds + 1):
        for name, step in steps.items():
            start, busy = time.perf_counter(), time.process_time()
            last[name] = step().item()
            if round_number:
                times[name].append(time.perf_counter() - start)
                worked[name].append(time.process_time() - busy)
    print(json.dumps({name: {"times": times[name], "cpu": worked[name], "loss": last[name]} for name in steps}))


def child(argv: list[str], *extra: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *argv, "--child", *extra], check=True, stdout=subprocess.PIPE)
    lines = done.stdout.decode().strip().splitlines()
    return json.loads(lines[-1]) if lines else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--model", help="smollm2, a folder or a Hub id (default: SmolLM2-135M's shape, random)")
    parser.add_argument("--layers", type=int, default=30, help="of the random model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--head-only", action="store_true", help="only the loss, from hidden states on")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["times", "memory"], help="measure one of the two (default: both)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], default="bf16" if torch.cuda.is_available() else "fp32"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        measure(args)
        return
    argv = sys.argv[1:]
    chosen = [name for name in args.variants.split(",") if _possible(name, args)]
    timed = child(argv) if args.only != "memory" else {name: None for name in chosen}
    memory = {name: child(argv, "--memory-of", name) if args.only != "times" else None for name in timed}
    fixed = {
        "bench": "train-head" if args.head_only else "train-step",
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else f"cpu x{torch.get_num_threads()}",
        "tokens": args.tokens, "precision": args.precision, "torch": torch.__version__,
        "transformers": transformers.__version__, "commit": commit() or "unknown",
        "shape": args.model
        or ([args.hidden, args.vocab] if args.head_only else f"SmolLM2-135M's, {args.layers} layers"),
    }  # fmt: skip
    report(args.out, fixed, timed, memory)


def report(out: Path, fixed: dict[str, Any], timed: dict[str, Any], memory: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    floor = {kind: statistics.median(found[kind]) for kind in ("times", "cpu") if (found := timed.get("sft"))}
    print(
        f"{'variant':14} {'median':>9} {'p20':>9} {'p80':>9} {'x sft':>6} {'x cpu':>6} {'step memory':>12} {'loss':>9}"
    )
    with (out / "train.jsonl").open("a") as file:
        for name, found in timed.items():
            row, shown = fixed | {"variant": name}, f"{name:14}"
            if found:
                times = sorted(found["times"])
                median, low, high = statistics.median(times), times[len(times) // 5], times[-1 - len(times) // 5]
                row |= {"median_s": median, "p20_s": low, "p80_s": high, "rounds": len(times), "loss": found["loss"]}
                row["cpu_s"] = statistics.median(found["cpu"])
                shown += f" {median:8.3f}s {low:8.3f}s {high:8.3f}s"
                shown += f" {median / floor['times']:6.2f} {row['cpu_s'] / floor['cpu']:6.2f}" if floor else " -" * 2
            if used := memory[name]:
                row |= {"peak_bytes": used["peak"], "step_bytes": used["peak"] - used["before"]}
                shown += f" {row['step_bytes'] / 2**20:8.0f} MiB"
            file.write(json.dumps(row) + "\n")
            print(shown + (f" {found['loss']:9.4f}" if found else ""), flush=True)


if __name__ == "__main__":
    main()
