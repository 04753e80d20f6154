"""Time and memory of the losses against eager PyTorch and other fused losses, in one process, on one set of inputs.

    python benchmarks/bench_loss.py           # the grid of the device at hand, to results/loss_cpu.run.jsonl and .png
    python benchmarks/bench_loss.py --record  # the whole grid, to the committed benchmarks/results/loss_cpu.jsonl
    python benchmarks/bench_loss.py --keep    # goes on where a run on this device and code was interrupted
    python benchmarks/bench_loss.py --tune    # row-pass configurations (GPU only)

Every method is checked against float64 on 128 rows of the same problem before it is timed. Methods take turns within
each round, so that a shared machine's noise meets all of them; ratios are of medians. Logits are peaked like a trained
model's: normal with standard deviation 3, and the label's raised by 12 (mean cross-entropy about 3; it is in the row).
Two kinds of case show what may be left out of the gradients. With standard deviation 1 (GPU) all probabilities but the
label's are below 2^-12, which cut-cross-entropy drops. The cases of text are SmolLM2's hidden states of English prose:
there fastdss may drop columns (grad_tol), and errors are of all rows.
fastdss knows the rows that count from the collator, as its Trainer does; "counts its rows" lets it wait for the GPU.
The floor is the GEMMs alone, on the live rows, into buffers made beforehand: forward, dX, dW if the head is trained,
and the reference's forward where the loss needs it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from environment import append_rows, chip, environment
from loss_methods import CPU_GRID, GPU_GRID, METHODS, Case, Inputs, Unavailable, make_inputs, truth_of
from torch import Tensor

from fastdss import KL

RESULTS = Path(__file__).parent / "results"
PEERS = ("triton", "liger-kernel", "cut-cross-entropy", "quack-kernels")
CHECK_ROWS = 128
REAL_FLOOR = "gemm floor, a real dZ"
HEAD_START = 40_000_000  # cycles, about 20 ms


def gemm_floor(x: Inputs) -> Callable[[], None]:
    """The matrix products nobody can avoid."""
    rows = x.labels != -100
    live, head = x.hidden.detach()[rows], x.head.detach()
    logits, d_hidden = live.new_empty(live.shape[0], head.shape[0]), torch.empty_like(live)
    d_head = None if x.case.frozen else torch.empty_like(head)
    ref = x.ref_hidden[rows & (x.star < 1)] if x.case.loss == "reverse" else None
    ref_logits = None if ref is None else live.new_empty(ref.shape[0], head.shape[0])

    def run() -> None:
        torch.mm(live, head.t(), out=logits)
        if ref is not None:
            torch.mm(ref, x.ref_head.t(), out=ref_logits)
        torch.mm(logits, head, out=d_hidden)
        if d_head is not None:
            torch.mm(logits.t(), live, out=d_head)

    return run


def gemm_floor_on_gradients(x: Inputs) -> Callable[[], None]:
    """The same with a dZ in the two products for gradients that is one: a GPU is faster where it multiplies zeros."""
    rows = x.labels != -100
    live, head, labels, star = x.hidden.detach()[rows], x.head.detach(), x.labels[rows], x.star[rows]
    logits, d_hidden = live.new_empty(live.shape[0], head.shape[0]), torch.empty_like(live)
    d_logits, d_head = torch.empty_like(logits), None if x.case.frozen else torch.empty_like(head)
    for part in torch.arange(live.shape[0], device=live.device).split(512):
        gradient = F.linear(live[part], head).float().softmax(1)
        gradient[torch.arange(len(part), device=live.device), labels[part]] -= 1
        d_logits[part] = (gradient * star[part, None]).to(live.dtype)

    def run() -> None:
        torch.mm(live, head.t(), out=logits)
        torch.mm(d_logits, head, out=d_hidden)
        if d_head is not None:
            torch.mm(d_logits.t(), live, out=d_head)

    return run


def step(method: Callable[[Inputs], Tensor], x: Inputs) -> tuple[Tensor, list[Tensor]]:
    loss = method(x)
    return loss.detach(), list(torch.autograd.grad(loss, x.leaves))


def check(name: str, x: Inputs) -> float:
    """Largest relative Frobenius error of a gradient, against float64; of the unweighted loss for peers without."""
    small = x.first(_checked_rows(x), x.hidden.dtype)
    errors = [
        float((a.double() - b).norm() / b.norm())
        for a, b in zip(step(METHODS[name], small)[1], true_gradients(truth_of(name), x), strict=True)
    ]
    return max(errors)


@lru_cache(maxsize=2)
def true_gradients(truth: Callable[[Inputs], Tensor], x: Inputs) -> list[Tensor]:
    return step(truth, x.first(_checked_rows(x), x.hidden.dtype).first(_checked_rows(x), torch.float64))[1]


def _checked_rows(x: Inputs) -> int:
    return x.case.n if x.case.text else CHECK_ROWS


def peak_extra(run: Callable[[], Any], x: Inputs) -> int:
    """Bytes at the peak beyond what was there before, less the gradients that remain."""
    gradients = sum(t.numel() * t.element_size() for t in x.leaves)
    if x.hidden.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before - gradients
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del kept
    return peak - gradients


def timed(run: Callable[[], Any], cuda: bool, head_start: int = HEAD_START) -> tuple[float, float]:
    """Seconds that it takes, and on a GPU the host's until everything is launched, on a CPU its processor time, which
    is what compares where other jobs run beside it.

    On a GPU between two events, the first behind ``head_start`` cycles of other work: in a training step the host is
    ahead too, and who makes it wait pays for it here as there.
    """
    if not cuda:
        start, busy = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - start, time.process_time() - busy
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(head_start)
    start = time.perf_counter()
    begun.record()
    run()
    ended.record()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    return begun.elapsed_time(ended) / 1e3, host


def measure(case: Case, device: str, rounds: int, only: list[str] | None) -> list[dict[str, Any]]:
    torch.compiler.reset()  # or the compiled method meets its limit of recompilations and runs eagerly
    x = make_inputs(case, device)
    counts = x.labels != -100
    with torch.no_grad():
        mean_ce = float(F.cross_entropy(F.linear(x.hidden[counts][:64], x.head).float(), x.labels[counts][:64]))
    runs: dict[str, Callable[[], Any]] = {"gemm floor": gemm_floor(x)}
    facts: dict[str, dict[str, Any]] = {"gemm floor": {}}
    if case.loss == "ce" and x.hidden.is_cuda:
        runs[REAL_FLOOR], facts[REAL_FLOOR] = gemm_floor_on_gradients(x), {}
    for name, method in METHODS.items():
        if only and name not in only:
            continue
        try:
            error = check(name, x)
            run = lambda method=method: step(method, x)  # noqa: E731
            facts[name] = {"error": error, "peak_extra_bytes": peak_extra(run, x)}
            runs[name] = run
        except Unavailable as reason:
            print(f"  {name}: {reason}")
        except Exception as failure:  # a peer that fails is a result too
            print(f"  {name}: {type(failure).__name__}: {str(failure).splitlines()[0][:100]}")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            taken = timed(run, x.hidden.is_cuda)
            if turn:
                times[name].append(taken)
    floor = statistics.median(seconds for seconds, _ in times["gemm floor"])
    busy_floor = statistics.median(busy for _, busy in times["gemm floor"])
    rows = []
    for name, taken_by in times.items():
        seconds, hosts = ([pair[i] for pair in taken_by] for i in range(2))
        p20, *_, p80 = statistics.quantiles(seconds, n=5) if len(seconds) > 1 else seconds * 2
        median = statistics.median(seconds)
        row = {"method": name, **asdict(case), "median_s": median, "p20_s": p20, "p80_s": p80, "rounds": rounds}
        second = statistics.median(hosts)
        row |= {"host_s": second} if x.hidden.is_cuda else {"cpu_s": second, "cpu_ratio_to_floor": second / busy_floor}
        rows.append(row | {"ratio_to_floor": median / floor, "mean_ce": mean_ce, **facts[name]})
    return rows


def measured_on(device: str) -> dict[str, Any]:
    """What a row says of where it was measured; its ``device`` is the chip's name."""
    return environment(device, *PEERS) | {"device": chip(device)}


def show(rows: list[dict[str, Any]]) -> None:
    fast = next((r["median_s"] for r in rows if r["method"] == "fastdss"), None)
    for r in rows:
        extra = r.get("peak_extra_bytes")
        error = r.get("error")
        print(
            f"  {r['method']:<41} {r['median_s'] * 1e3:9.1f} ms  ({r['p20_s'] * 1e3:.0f} to {r['p80_s'] * 1e3:.0f})"
            f"  {r['ratio_to_floor']:5.2f} x floor"
            + (f"  {r['median_s'] / fast:5.2f} x fastdss" if fast else "")
            + (f"  host {r['host_s'] * 1e3:.1f} ms" if "host_s" in r else "")
            + (f"  {r['cpu_ratio_to_floor']:5.2f} x its processor time" if "cpu_s" in r else "")
            + (f"  {extra / 2**20:7.0f} MiB" if extra is not None else "")
            + (f"  error {error:.1e}" if error is not None else "")
        )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed: no plot")
        return
    labels = ["loss", "dtype", "n", "d", "v", "live", "frozen", "text"]
    cases = list(dict.fromkeys(tuple(r[key] for key in labels) for r in rows))
    methods = list(dict.fromkeys(r["method"] for r in rows if not r["method"].startswith("gemm floor")))
    figure = Figure(figsize=(9, 1 + 1.1 * len(cases)), layout="constrained")
    axes = figure.subplots()
    for i, method in enumerate(methods):
        points = [(cases.index(tuple(r[key] for key in labels)) + i * 0.8 / len(methods), r["ratio_to_floor"])
                  for r in rows if r["method"] == method]  # fmt: skip
        axes.barh([p[0] for p in points], [p[1] for p in points], height=0.7 / len(methods), label=method)
    axes.axvline(1, color="black", linewidth=1)
    names = [
        f"{c[0]} {c[1]}\nN={c[2]} D={c[3]} V={c[4]}\nlive {c[5]}{', frozen' * c[6]}{', text' * c[7]}" for c in cases
    ]
    axes.set_yticks([i + 0.3 for i in range(len(cases))], names, fontsize=8)
    axes.set_xlabel("time / time of the GEMMs alone (median)")
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)


def kept_rows(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of earlier runs on the same device, of the same code."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if all(row.get(key) == facts[key] for key in ("device", "code", "versions"))]


def case_of(row: dict[str, Any]) -> Case:
    return Case(**{field.name: row[field.name] for field in fields(Case)})


def tune(out: Path) -> None:
    """Time every row-pass configuration on this GPU: what kernels/configs.py should hold."""
    from fastdss.kernels.configs import ROW_PASS_CANDIDATES
    from fastdss.kernels.row_pass import launch_row_pass_fwd

    backend = "hip" if torch.version.hip else "cuda"
    facts = measured_on("cuda")
    for has_ref in (False, True):
        for width in (128256, 262144):
            logits = torch.randn(1024, width, device="cuda")
            ref = torch.randn_like(logits) if has_ref else None
            rows = [torch.zeros(1024, dtype=torch.int64, device="cuda"), *torch.rand(3, 1024, device="cuda")]
            kl = KL.REVERSE if has_ref else KL.K2
            for config in ROW_PASS_CANDIDATES[backend]:

                def launch(
                    config: Any = config, logits: Tensor = logits, ref: Any = ref, rows: Any = rows, code: int = kl.code
                ) -> None:
                    launch_row_pass_fwd(
                        logits, ref, logits, *rows, bias=None, ref_bias=None, kl_code=code, label_smoothing=0.0,
                        z_loss=0.0, scales=(1.0, None, 1.0, None), grad=True, config=config,
                    )  # fmt: skip

                launch()
                best = statistics.median(timed(launch, True)[0] for _ in range(20))
                moved = logits.numel() * 4 * (3 if has_ref else 2)
                print(f"{kl} V={width} {config}: {best * 1e3:.3f} ms, {moved / best / 1e12:.2f} TB/s")
                row = {"tune": "row pass", "kl": kl, "v": width, **config._asdict(), "median_s": best}
                append_rows(out / "row_pass_tune.jsonl", [row | {"bytes": moved} | facts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="*", help=f"of {list(METHODS)}")
    parser.add_argument("--case", type=int, nargs="*", help="positions in the grid")
    parser.add_argument("--keep", action="store_true", help="keep rows of this device and code, leave out their cases")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no case begins later than this")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument(
        "--record", action="store_true", help="replace the committed rows and picture; else a file of this run's own"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.tune:
        if not torch.cuda.is_available():
            parser.error("--tune needs a GPU")
        args.out.mkdir(parents=True, exist_ok=True)
        return tune(args.out)
    if args.record and args.case is not None and not args.keep:
        parser.error("--record replaces all rows: with --case only beside --keep")
    grid = CPU_GRID if args.device == "cpu" else GPU_GRID
    grid = grid if args.case is None else [grid[i] for i in args.case]
    facts = measured_on(args.device)
    print(facts)
    args.out.mkdir(parents=True, exist_ok=True)
    name, start = f"loss_{args.device}{'' if args.record else '.run'}", time.monotonic()
    path = args.out / f"{name}.jsonl"
    rows = kept_rows(path, facts) if args.keep else []
    done = {case_of(row) for row in rows}
    todo = [case for case in grid if case not in done]
    failed = 0
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        while todo and time.monotonic() - start < args.seconds:
            case = todo.pop(0)
            print(case)
            try:
                found = measure(case, args.device, args.rounds, args.methods)
            except Unavailable as reason:
                print(f"  {reason}")
                continue
            except Exception:  # the other cases' rows are worth having
                traceback.print_exc()
                failed += 1
                continue
            show(found)
            rows += found
            file.writelines(json.dumps(row | facts) + "\n" for row in found)
            file.flush()
    plot(rows, args.out / f"{name}.png")
    if todo:
        sys.exit(f"time is over, {len(todo)} cases are left: the same command with --keep goes on")
    if failed:
        sys.exit(f"{failed} cases failed: see above")


if __name__ == "__main__":
    main()
