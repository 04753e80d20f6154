"""Where the time of one loss goes: every part of a cross-entropy step by itself, by turns in one process.

    python benchmarks/profile_loss.py              # the shapes below; rows to benchmarks/results/loss_profile.jsonl
    python benchmarks/profile_loss.py --keep       # leaves out what this device and code have rows of

The parts: the product of rows and head with bf16 and with fp32 results (the vendor's), the pass that makes exponentials
of fp32 logits, the Triton product whose epilogue makes them (every configuration that fits), the products for hidden
states and head with rounded results and with fp32 sums; then whole steps, backend="triton" against backend="fused".
A part's operands are those of a step, exponentials and all: a GPU multiplies zeros faster. E of all rows must fit.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_loss import RESULTS, kept_rows, measured_on, step, timed
from environment import append_rows
from fastdss.kernels.configs import HEAD_EXPONENTIALS_CANDIDATES, HeadConfig
from fastdss.kernels.exponentials import launch_exponentials_fwd
from fastdss.kernels.head_exponentials import head_architecture, head_config, launch_head_exponentials_fwd, takes
from loss_methods import Case, Inputs, fused_failure, make_inputs

from fastdss import weighted_ce
from fastdss.loss import gemm
from fastdss.loss.rows import padded

SHAPES = ((8192, 4096, 128256), (8192, 4096, 151936), (8192, 2560, 262144), (512, 4096, 128256))
FILE = "loss_profile.jsonl"


class Parts:
    """What the parts of a step work on, and the parts."""

    def __init__(self, x: Inputs) -> None:
        self.x, self.hidden, self.head = x, x.hidden.detach(), x.head.detach()
        n, v, dtype = x.case.n, x.case.v, self.hidden.dtype
        self.labels = x.labels.clamp(min=0)
        self.sums = self.hidden.new_empty((3, n), dtype=torch.float32)
        self.logits = self.hidden.new_empty((min(n, max(1, (1 << 28) // v)), v), dtype=torch.float32)  # 1 GiB
        self.exponentials = self.hidden.new_empty((n, padded(v)), dtype=dtype)[:, :v]
        self.d_hidden = self.hidden.new_empty(self.hidden.shape, dtype=torch.float32)
        self.d_head, self.summed = (
            torch.empty_like(self.head),
            self.head.new_empty(self.head.shape, dtype=torch.float32),
        )
        self._each_chunk(self._product_and_pass)

    def _each_chunk(self, run: Callable[[slice], None]) -> None:
        for start in range(0, self.x.case.n, self.logits.shape[0]):
            run(slice(start, min(start + self.logits.shape[0], self.x.case.n)))

    def _product(self, part: slice) -> None:
        gemm.project(self.hidden[part], self.head, out=self.logits[: part.stop - part.start])

    def _pass(self, part: slice) -> None:
        launch_exponentials_fwd(
            self.logits[: part.stop - part.start], self.exponentials[part], self.labels[part], *self.sums[:, part],
            None, bias=None, scale=1.0, softcap=None,
        )  # fmt: skip

    def _product_and_pass(self, part: slice) -> None:
        self._product(part)
        self._pass(part)

    def _fused(self, config: HeadConfig) -> None:
        launch_head_exponentials_fwd(
            self.hidden, self.head, self.exponentials, self.labels, *self.sums, None,
            bias=None, scale=1.0, softcap=None, config=config,
        )  # fmt: skip

    def vendors(self) -> dict[str, Callable[[], Any]]:
        """The parts without the fused product by name, in the order of a step."""
        found: dict[str, Callable[[], Any]] = {
            "GEMM 1, 16-bit logits": lambda: torch.mm(self.hidden, self.head.t(), out=self.exponentials),
            "GEMM 1, fp32 logits": lambda: self._each_chunk(self._product),
            "pass": lambda: self._each_chunk(self._pass),
            "GEMM 1, fp32 logits, and pass": lambda: self._each_chunk(self._product_and_pass),
        }
        scaled = torch.empty_like(self.hidden).copy_(self.hidden)
        found["dX"] = lambda: gemm.times_head(self.exponentials, self.head, self.d_hidden)
        found["dW, rounded"] = lambda: torch.mm(self.exponentials.t(), scaled, out=self.d_head)
        found["dW, fp32 sum"] = lambda: gemm.add_product(self.summed, self.exponentials.t(), scaled, first=True)
        found["step, triton"] = lambda: self._step("triton")
        return found

    def fused(self) -> dict[str, Callable[[], Any]]:
        """The fused product in every configuration that may fit, and a step by it; none where it cannot run."""
        device = self.head.device
        try:
            if not takes(self.head, self.head.dtype, asked=True, bias=False):
                return {}
        except ValueError:
            return {}
        if failure := fused_failure() if device.type == "cuda" else "":
            print(f"  {failure}")
            return {}
        pinned = head_config(device, finished=False)
        others = HEAD_EXPONENTIALS_CANDIDATES if head_architecture(device) == "sm_90" else ()
        found: dict[str, Callable[[], Any]] = {"fused": lambda: self._fused(pinned)}
        found["step, fused"] = lambda: self._step("fused")
        found |= {f"fused, {tuple(config)}": lambda config=config: self._fused(config) for config in others}
        return found

    def _step(self, backend: str) -> None:
        step(lambda x: weighted_ce(x.hidden, x.head, x.labels, backend=backend, compact=False), self.x)


def profile(case: Case, parts: dict[str, Callable[[], Any]], device: str, rounds: int) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in parts}
    for name in [*parts]:
        try:
            parts[name]()  # compiles
        except Exception as failure:  # a candidate that does not fit the chip is a result too
            print(f"  {name}: {type(failure).__name__}: {str(failure).splitlines()[0][:100]}")
            del parts[name], times[name]
    for _ in range(rounds):
        for name, run in parts.items():
            times[name].append(timed(run, device == "cuda")[0])
    rows = []
    for name, seconds in times.items():
        p20, *_, p80 = statistics.quantiles(seconds, n=5) if len(seconds) > 1 else seconds * 2
        rows.append(
            {"part": name, "n": case.n, "d": case.d, "v": case.v, "dtype": case.dtype, "rounds": rounds}
            | {"median_s": statistics.median(seconds), "p20_s": p20, "p80_s": p80}
        )
        flops = 2 * case.n * case.d * case.v
        rate = "" if name == "pass" or "step" in name else f"  {flops / rows[-1]['median_s'] / 1e12:6.1f} TFLOP/s"
        print(f"  {name:<44} {rows[-1]['median_s'] * 1e3:9.2f} ms{rate}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", type=int, nargs=3, action="append", metavar=("N", "D", "V"))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=math.inf, help="no shape begins later than this")
    parser.add_argument("--keep", action="store_true", help="leave out shapes that this device and code have rows of")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    facts, start = measured_on(args.device), time.monotonic()
    done = {(row["n"], row["d"], row["v"]) for row in kept_rows(args.out / FILE, facts)} if args.keep else set()
    for shape in map(tuple, args.shape or SHAPES):
        if shape in done:
            continue
        if time.monotonic() - start > args.seconds:
            raise SystemExit("time is over: the same command with --keep goes on")
        print(shape)
        case = Case(*shape, args.dtype, 1.0)
        parts = Parts(make_inputs(case, args.device))
        for group in (parts.vendors(), parts.fused()):  # the first one's rows are written whatever the second does
            rows = profile(case, group, args.device, args.rounds)
            append_rows(args.out / FILE, [row | facts for row in rows])


if __name__ == "__main__":
    main()
