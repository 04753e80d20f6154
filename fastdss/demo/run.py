"""`fastdss demo` from start to end: score, train, evaluate, report."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdss.console.output import progress_bar, quiet_libraries
from fastdss.console.threads import use_threads
from fastdss.errors import UserError
from fastdss.files import write_atomically
from fastdss.models.sources import SMOLLM2
from fastdss.star.align import IGNORE
from fastdss.star.guard import Guard
from fastdss.star.scores import StarScores
from fastdss.star.scoring import star_scores

from .arms import Arm, choose_arms, labelled_scores
from .conversations import ADVICE, DISCLOSURE, ENDING, Conversation, HeldOut, held_out_prompts, training_conversations
from .evaluate import Count, evaluate, wilson
from .outcome import Demo, Run, versions
from .page import as_json, as_page
from .policy import Policy, load_policy, stack
from .settings import Settings
from .training import ACCEPT, Curves, Recipe, Row, encode_rows, star_weights, train

# For the progress bar: how many training steps an evaluation, and the preparation, take as long as. Rough.
EVALUATION = 6
PREPARATION = 12


@dataclass(frozen=True)
class Tools:
    """What all arms use and the page does not show."""

    policy: Policy
    guard: Guard
    prompts: list[HeldOut]
    ceiling: float  # nats per token, under the reference, of the least likely training response


def run(settings: Settings, *, progress: bool = True) -> tuple[Demo, list[tuple[str, object]]]:
    """Run the whole demonstration; returns its result, and where the page, the JSON file and the rows were written."""
    started = time.perf_counter()
    settings = settings.checked()
    use_threads(settings.threads)
    page_path, json_path, rows_path = check_writable(settings.out)
    arms = choose_arms(settings.arms, settings.verdicts)
    with quiet_libraries(quiet=not progress), Progress(arms, settings.steps, shown=progress) as bar:
        outcome, tools = _prepare(settings, bar)
        write_atomically(rows_path, training_file(outcome.conversations).encode())
        for arm in arms:
            outcome.runs.append(_run_arm(arm, outcome, tools, bar))
            outcome.seconds = time.perf_counter() - started
            # Written after every arm, so that an interrupted run leaves the results of the arms before.
            write_atomically(json_path, (json.dumps(as_json(outcome), indent=1, allow_nan=False) + "\n").encode())
            write_atomically(page_path, as_page(outcome).encode())
    model = settings.policy or SMOLLM2
    paths: list[tuple[str, object]] = [("page", page_path), ("numbers", json_path), ("rows", rows_path)]
    return outcome, [*paths, ("next", shlex.join(["fastdss", "train", str(rows_path), "--model", str(model)]))]


def _prepare(settings: Settings, progress: Progress) -> tuple[Demo, Tools]:
    """All that the arms share: data, scores, the policy, and what the reference says of every row."""
    half = settings.rows // 2
    conversations = training_conversations(settings.rows - half, half, settings.seed)
    advice = max(1, settings.prompts * 4 // 7)
    prompts = held_out_prompts(settings.prompts - advice, advice, settings.seed)
    progress.say("scoring every prefix with the guard")
    guard = Guard.tiny()
    guard.model.to(settings.device)
    batch = {"prompt": [c.prompt for c in conversations], "response": [c.response for c in conversations]}
    scores = star_scores(guard, batch, every=settings.every)
    verdicts = {"guard": scores, "labelled": labelled_scores(scores, conversations)}
    progress.say("loading the policy", PREPARATION // 3)
    policy = load_policy(settings.policy, settings.device, settings.precision)
    progress.say("running the reference once", PREPARATION // 3)
    encoded = scores.token_weights(policy.tokenizer)
    rows = encode_rows(policy, conversations, encoded)
    progress.say("reference done", PREPARATION // 3)
    chosen = [name for name in verdicts if name == "guard" or name in settings.verdicts]
    total = len(stack(policy.model))
    layers = None if settings.layers == 0 else settings.layers or (total + 1) // 2
    recipe = Recipe(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        kl_scale=settings.kl_scale,
        layers=layers,
        seed=settings.seed,
    )
    outcome = Demo(
        settings=settings,
        versions=versions(policy),
        policy=policy.source,
        recipe=recipe,
        trained_layers="all, embeddings too" if layers is None else f"top {min(layers, total)} of {total}",
        conversations=conversations,
        rows=rows,
        scores={name: verdicts[name] for name in chosen},
        facts={name: verdict_facts(verdicts[name], conversations) for name in chosen},
        weights={name: mean_weights(policy, verdicts[name], rows) for name in chosen},
        runs=[],
    )
    ceiling = max(-row.ref_logprobs[row.ref_logprobs != 0].mean().item() for row in rows)
    return outcome, Tools(policy, guard, prompts, ceiling)


def _run_arm(arm: Arm, demo: Demo, tools: Tools, progress: Progress) -> Run:
    started = time.perf_counter()
    policy, recipe = tools.policy, demo.recipe
    model, curves, trained = policy.model, Curves(), 0
    if arm.method != "none":
        stars = star_weights(arm, demo.scores.get(arm.setting), policy, demo.rows)
        trained = sum(bool(star.any()) for star in stars)
        progress.say(f"training {arm.name}")
        model, curves = train(policy, demo.rows, stars, arm, recipe, progress.step)
    progress.say(f"evaluating {arm.name}")
    longest, ceiling = demo.settings.new_tokens, tools.ceiling
    result = evaluate(policy, model, tools.prompts, tools.guard, new_tokens=longest, ceiling=ceiling)
    progress.say(f"{arm.name} done", EVALUATION)
    return Run(arm, result, curves, trained, time.perf_counter() - started)


def verdict_facts(scores: StarScores, conversations: list[Conversation]) -> dict[str, Count]:
    """How good the verdicts on the training rows are: on whole responses, and on prefixes."""
    final = scores.final() >= ACCEPT
    lowest = torch.stack([values.min() for values in scores.scores]) >= ACCEPT
    poisoned = torch.tensor([c.kind == "poisoned" for c in conversations])
    return {
        "poisoned_accepted": wilson(int((final & poisoned).sum()), int(poisoned.sum())),
        "poisoned_never_flagged": wilson(int((lowest & poisoned).sum()), int(poisoned.sum())),
        "benign_rejected": wilson(int((~final & ~poisoned).sum()), int((~poisoned).sum())),
    }


def mean_weights(policy: Policy, scores: StarScores, rows: list[Row]) -> dict[str, float]:
    """The mean token weight of STAR-DSS, by part of the response."""
    by_part: dict[str, list[float]] = {part: [] for part in ("benign", ADVICE, DISCLOSURE, ENDING)}
    for row, tokens in zip(rows, scores.token_weights(policy.tokenizer), strict=True):
        counted = [w for w, label in zip(tokens["token_weights"], tokens["labels"], strict=True) if label != IGNORE]
        for part, weight in zip(row.parts, counted, strict=True):
            by_part[part].append(weight)
    return {part: sum(weights) / max(len(weights), 1) for part, weights in by_part.items()}


def training_file(conversations: list[Conversation]) -> str:
    """The training rows as JSON Lines, which every other command reads."""
    rows = ({"prompt": row.prompt, "response": row.response} for row in conversations)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def check_writable(out: str) -> tuple[Path, Path, Path]:
    """Paths of the page, the JSON file and the rows. Raises ``OSError`` now, and not after minutes of work, where one
    of them cannot be written."""
    page_path = Path(out)
    if page_path.is_dir():
        raise IsADirectoryError(f"--out {out} is a folder; name a file, such as {page_path / 'demo_report.html'}")
    json_path = page_path.with_suffix(".json")
    rows_path = page_path.with_suffix(".jsonl")
    if page_path in (json_path, rows_path):
        what = "numbers" if page_path == json_path else "rows"
        raise UserError(
            f"--out {out} ends in {page_path.suffix}, which is where the {what} go; name the page, such as demo.html"
        )
    for path in (page_path, json_path, rows_path):
        existed = path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a"):
                pass
        except OSError as error:
            raise OSError(f"cannot write {path}: {error.strerror}") from error
        if not existed:
            path.unlink()
    return page_path, json_path, rows_path


class Progress:
    """One bar over the whole run, in units of a training step, so that it shows the time left of the whole run."""

    def __init__(self, arms: list[Arm], steps: int, shown: bool) -> None:
        trained = sum(arm.method != "none" for arm in arms)
        total = PREPARATION + trained * steps + len(arms) * EVALUATION
        self._bar = progress_bar(total, "demo", "steps", shown=shown)

    def say(self, what: str, done: int = 0) -> None:
        self._bar.set_description_str(f"{what:<38}", refresh=False)
        self._bar.update(done)

    def step(self, loss: float) -> None:
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update(1)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
