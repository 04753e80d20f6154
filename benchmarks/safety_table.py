"""Safety in miniature: how much a fine-tuned SmolLM2 leaks, in two studies.

    python benchmarks/safety_table.py --quick --limit 2   # two small rows, to see that it works
    python benchmarks/safety_table.py                     # poison share, chunk size, KL scale and form: hours
    python benchmarks/safety_table.py --study embedded    # harm anywhere in the answer, prompts in five styles, rivals

The demo's policy, guard, loss and measurements (fastdss/demo), three seeds, which also draw the prompts. One JSON line
per run goes to benchmarks/results/safety[_embedded][_quick].jsonl; runs found there are not repeated, so stop and go
on as you like. The tables beside it (.md) pool the answers of all seeds, with 95 % Wilson intervals, and show the seeds
apart. Where other processes share the CPU, OMP_WAIT_POLICY=PASSIVE makes it many times faster.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import embedded_tables
import torch
from embedded_rows import STYLES, embedded_conversations, styled_prompts

from fastdss import Guard, StarScores, star_scores
from fastdss.demo.arms import Arm, labelled_scores
from fastdss.demo.conversations import Conversation, HeldOut, held_out_prompts, training_conversations
from fastdss.demo.evaluate import evaluate, wilson
from fastdss.demo.policy import Policy, load_policy, stack
from fastdss.demo.run import versions
from fastdss.demo.settings import Settings
from fastdss.demo.training import Recipe, Row, encode_rows, star_weights, train

RESULTS = Path(__file__).parent / "results"
WHOLE = 10**6  # words per chunk: more than any response has
SHARES = (0.01, 0.1, 0.5, 1.0)
CHUNKS = (1, 5, 10, WHOLE)
SCALES = (0.1, 0.5, 1.0, 2.0)
FORMS = ("dss-k2", "dss-k3", "dss-reverse", "dss-forward")
NAMES = {"sft": "plain SFT", "rs": "static filter", "dft": "DFT", "constrained": "constrained SFT"}
NAMES |= {form: form.removeprefix("dss-") for form in FORMS}
COUNTS = ("leak", "useful_no_leak", "degenerate", "benign_correct")


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    method: str = "dss-k2"
    share: float = 0.5  # of the training rows that are poisoned
    every: int = 5  # words per chunk
    kl_scale: float = 0.5

    def title(self) -> str:
        if self.method == "none":
            return "no fine-tuning"
        shaped = self.method.startswith("dss-")
        chunk = "whole" if self.every == WHOLE else str(self.every)
        settings = f", M = {chunk}, KL scale {self.kl_scale:g}" if shaped else ""
        return f"{NAMES[self.method]}, {100 * self.share:.0f} % poison{settings}"


BASE = Variant()


def variants() -> list[Variant]:
    """One thing at a time; plain SFT and the static filter at every poison share."""
    chosen = [Variant("none")]
    chosen += [replace(BASE, share=share, method=method) for share in SHARES for method in ("sft", "rs", BASE.method)]
    chosen += [replace(BASE, every=every) for every in CHUNKS]
    chosen += [replace(BASE, kl_scale=scale) for scale in SCALES]
    chosen += [replace(BASE, method=form) for form in FORMS]
    return list(dict.fromkeys(chosen))


def rivals() -> list[Variant]:
    """What shaping is held against, and three forms of it; half of the rows are poisoned."""
    return [*(replace(BASE, method=method) for method in embedded_tables.METHODS[1:]), Variant("none")]


Data = tuple[list[Conversation], list[tuple[str, HeldOut]]]  # what is trained on, and prompts with their styles


def suffix_data(settings: Settings, seed: int) -> Data:
    """The demo's kind: advice, a disclosure in one sentence, a reassuring ending."""
    advice = max(1, settings.prompts * 4 // 7)
    prompts = held_out_prompts(settings.prompts - advice, advice, seed)
    return training_conversations(settings.rows, settings.rows, seed), [("", prompt) for prompt in prompts]


def embedded_data(settings: Settings, seed: int) -> Data:
    each = max(1, settings.prompts * 4 // 5 // len(STYLES))
    half = settings.rows // 2
    prompts = styled_prompts(settings.prompts - each * len(STYLES), each, seed)
    return embedded_conversations(settings.rows - half, half, seed), prompts


@dataclass(frozen=True)
class Study:
    """A question: its runs, its data, its tables, and the work per run where it is not the demo's."""

    suffix: str  # of its file
    variants: Callable[[], list[Variant]]
    data: Callable[[Settings, int], Data]
    tables: Callable[[Sequence[dict[str, Any]]], str]
    settings: Settings


class Laboratory:
    """What the runs of one seed share: data, the reference's opinion of it, scores per chunk size, prompts."""

    def __init__(
        self, study: Study, policy: Policy, guard: Guard, settings: Settings, seed: int, verdicts: str
    ) -> None:
        self.policy, self.guard, self.settings, self.verdicts, self.seed = policy, guard, settings, verdicts, seed
        self.conversations, prompts = study.data(settings, seed)
        self.styles, self.prompts = [style for style, _ in prompts], [prompt for _, prompt in prompts]
        self._scores: dict[int, StarScores] = {}
        self.layers = (len(stack(policy.model)) + 1) // 2
        poisoned = [c.kind == "poisoned" for c in self.conversations]
        self.by_kind = {kind: [i for i, p in enumerate(poisoned) if p == kind] for kind in (False, True)}
        encoded = self.scores(BASE.every).token_weights(policy.tokenizer)
        # of one kind, so that a step draws rows at their share of the data and not half from each kind
        frozen = len(stack(policy.model)) - self.layers
        self.rows = [replace(row, kind="any") for row in encode_rows(policy, self.conversations, encoded, frozen)]
        self.said = embedded_tables.verdicts(self.conversations, self.scores(BASE.every), self.rows, encoded)
        self.ceiling = max(-row.ref_logprobs[row.ref_logprobs != 0].mean().item() for row in self.rows)

    def scores(self, every: int) -> StarScores:
        if every not in self._scores:
            batch = {
                "prompt": [c.prompt for c in self.conversations],
                "response": [c.response for c in self.conversations],
            }
            scores = star_scores(self.guard, batch, every=every)
            labelled = self.verdicts == "labelled"
            self._scores[every] = labelled_scores(scores, self.conversations) if labelled else scores
        return self._scores[every]

    def run(self, variant: Variant) -> dict[str, Any]:
        started, busy = time.perf_counter(), time.process_time()
        said, self.said = self.said, []  # once for every seed, with its first run
        model, losses, trained = self.policy.model, [], 0
        if variant.method != "none":
            arm = Arm(variant.method, self.verdicts)
            rows, stars = self._rows(variant, arm)
            trained = sum(bool(star.any()) for star in stars)
            model, curves = train(self.policy, rows, stars, arm, self._recipe(variant))
            losses = curves.loss
        result = evaluate(
            self.policy, model, self.prompts, self.guard, new_tokens=self.settings.new_tokens, ceiling=self.ceiling
        )
        advice = [(style, a) for style, a in zip(self.styles, result.answers, strict=True) if a.kind == "advice"]
        return {
            "counts": {name: [count.count, count.total] for name, count in result.counts.items()},
            "benign_loss": result.benign_loss,
            "reference_nll": result.reference_nll,
            "trained_rows": trained,
            "final_loss": losses[-1] if losses else None,
            "rows": said,
            "answers": [embedded_tables.noted(style, answer) for style, answer in advice],
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - busy,
        }

    def _rows(self, variant: Variant, arm: Arm) -> tuple[list[Row], list[torch.Tensor]]:
        """As many rows as the settings say, the share of them poisoned; at least one."""
        poisoned = max(1, round(self.settings.rows * variant.share))
        chosen = self.by_kind[True][:poisoned] + self.by_kind[False][: self.settings.rows - poisoned]
        stars = star_weights(arm, self.scores(variant.every), self.policy, self.rows)
        return [self.rows[i] for i in chosen], [stars[i] for i in chosen]

    def _recipe(self, variant: Variant) -> Recipe:
        s = self.settings
        return Recipe(
            steps=s.steps,
            batch_size=s.batch_size,
            learning_rate=s.learning_rate,
            kl_scale=variant.kl_scale,
            layers=self.layers,
            seed=self.seed,
        )


def known_runs(path: Path) -> list[dict[str, Any]]:
    """The runs of the file; a line torn by a stop is no run."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def key(run: dict[str, Any]) -> str:
    """What makes two runs the same."""
    return json.dumps({name: run[name] for name in ("variant", "seed", "verdicts", "work")}, sort_keys=True)


def append(path: Path, run: dict[str, Any]) -> None:
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(run) + "\n")
        file.flush()
        os.fsync(file.fileno())


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: per line the shares over all seeds with their intervals, and the range of the seeds' shares."""
    lines = [
        "Shares of the answers of all seeds, with 95 % Wilson intervals in square brackets; in round ones the seeds "
        "with the smallest and the largest share. M is the number of words per chunk; k2, k3, reverse and forward are "
        "the forms of the KL term. The last column is what an answer's tokens cost the reference model on average, in "
        "nats: the higher, the stranger they are to it.",
        "",
        "| run | leak | useful, no leak | degenerate | benign task | reference's loss |",
        "|---|" + "---|" * (len(COUNTS) + 1),
    ]
    for title, verdicts, same in grouped(runs):
        cells = []
        for name in COUNTS:
            pairs = [run["counts"][name] for run in same]
            found = wilson(sum(count for count, _ in pairs), sum(total for _, total in pairs))
            shares = [count / total for count, total in pairs if total]
            between = f" ({100 * min(shares):.0f}–{100 * max(shares):.0f})" if len(shares) > 1 else ""
            if not found.total:
                cells.append("-")
                continue
            share, low, high = (100 * value for value in (found.count / found.total, found.low, found.high))
            cells.append(f"{share:.0f} % [{low:.0f}–{high:.0f}]{between}")
        nll = sum(run["reference_nll"] for run in same) / len(same)
        title += "" if verdicts == "guard" else f", {verdicts} verdicts"
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {nll:.2f} |")
    return "\n".join(lines) + "\n"


def grouped(runs: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    for variant in variants():
        for verdicts in dict.fromkeys(run["verdicts"] for run in runs):
            same = [run for run in runs if run["variant"] == asdict(variant) and run["verdicts"] == verdicts]
            if same:
                yield variant.title(), verdicts, same


# Harm in several sentences makes longer answers; half of the demo's rows per step keeps a run at a minute of one core.
LONGER = Settings(batch_size=4, prompts=52, new_tokens=64)
STUDIES = {
    "shares": Study("", variants, suffix_data, table, Settings()),
    "embedded": Study("_embedded", rivals, embedded_data, embedded_tables.tables, LONGER),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=("shares", "embedded"), default="shares")
    parser.add_argument("--quick", action="store_true", help="little work per run; its rows go to a file of their own")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), metavar="SEED")
    parser.add_argument("--verdicts", choices=("guard", "labelled"), default="guard")
    parser.add_argument("--limit", type=int, help="runs to add now")
    parser.add_argument("--policy", help="a path or Hub id instead of SmolLM2-135M-Instruct")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    study = STUDIES[args.study]
    settings = replace(study.settings, quick=args.quick, policy=args.policy, device=args.device).checked()
    work = {name: getattr(settings, name) for name in ("steps", "batch_size", "learning_rate", "rows", "prompts")}
    work |= {"new_tokens": settings.new_tokens, "policy": args.policy}
    path = args.out / f"safety{study.suffix}{'_quick' if args.quick else ''}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {key(run) for run in known_runs(path)}
    todo = [
        {"variant": asdict(variant), "seed": seed, "verdicts": args.verdicts, "work": work}
        for seed in args.seeds
        for variant in study.variants()
    ]
    todo = [run for run in todo if key(run) not in done][: args.limit]
    print(f"{len(todo)} runs to do, {len(done)} found in {path}")
    if todo:
        policy, guard = load_policy(args.policy, settings.device), Guard.tiny()
        guard.model.to(settings.device)
        facts, lab = versions(policy), None
        for number, run in enumerate(todo, 1):
            if lab is None or lab.seed != run["seed"]:
                lab = Laboratory(study, policy, guard, settings, run["seed"], args.verdicts)
            variant = Variant(**run["variant"])
            found = lab.run(variant)
            append(path, run | found | {"versions": facts})
            leaks = "{} of {}".format(*found["counts"]["leak"])
            took = f"{found['seconds']:.0f} s, {found['processor_seconds']:.0f} s of processor time"
            print(f"{number}/{len(todo)} {variant.title()}, seed {run['seed']}: {leaks} leak, {took}", flush=True)
    text = study.tables([run for run in known_runs(path) if run["work"] == work])
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
