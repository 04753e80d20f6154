"""The trained model's card: what the model is, its data and guard, its settings, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fastdss.models.sources import HUB_ID, SMOLLM2
from fastdss.version import __version__

from .settings import TrainSettings

# Settings that the card's last table leaves out: they stand elsewhere on the card, or do not change the model.
_LEFT_OUT = ("data", "model", "guard", "out", "resume", "cpu", "report_to")


def card(outcome: Mapping[str, Any]) -> str:
    """The text of the ``README.md`` beside the weights; ``outcome`` is what ``run`` returns."""
    settings, rows, scores = outcome["settings"], outcome["rows"], outcome["scores"]
    adapter = settings["method"] == "lora"
    base = HUB_ID if settings["model"] == SMOLLM2 else settings["model"]
    head = ["---", f"base_model: {base}", f"library_name: {'peft' if adapter else 'transformers'}"]
    head += ["pipeline_tag: text-generation", "tags: [fastdss, star-dss]", "---", ""]
    kind = "An adapter (LoRA) for" if adapter else "A fine-tuned copy of"
    commit = f" (commit {outcome['model_commit']})" if outcome["model_commit"] else ""
    lead = [
        f"# {settings['model']}, fine-tuned with dynamic safety shaping",
        "",
        f"{kind} `{settings['model']}`{commit}, trained by fastdss {__version__} with the STAR-DSS loss "
        "([arXiv 2505.17196](https://arxiv.org/abs/2505.17196)): imitation of the stretches that the guard calls safe, "
        f"and a KL term ({settings['kl']}, scale {settings['kl_scale']:g}) to the model before training elsewhere.",
        "",
        "```python",
        "from fastdss import load_model",
        "",
        'model, tokenizer = load_model("this folder")',
        "```",
        "",
    ]
    data = [
        ("data", f"`{settings['data']}`"),
        ("guard", f"`{settings['guard']}`" if outcome["judged_here"] else "the data came with its scores"),
        *[(f"rows {name.replace('_', ' ')}", count) for name, count in rows.items() if name != "reasons"],
        *[(name.replace("_", " "), count) for name, count in scores.items() if name != "flags"],
    ]
    measured = [
        (name.removeprefix("eval_"), f"{outcome['before'][name]:.4f} | {outcome['after'][name]:.4f}")
        for name in ("eval_loss", "eval_ce", "eval_kl")
        if name in outcome["before"] and name in outcome["after"]
    ]
    text = [
        *head,
        *lead,
        "## Data and guard",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in data),
    ]
    if measured:
        text += ["", "## Held-out rows", "", "| per label | before | after |", "|---|---|---|"]
        text += [f"| {name} | {values} |" for name, values in measured]
    text += ["", "What the model writes was not measured here: sample it, and judge what it says, before you use it."]
    shown = {item.name: settings[item.name] for item in fields(TrainSettings) if item.name not in _LEFT_OUT}
    text += ["", "## Settings", "", "```yaml", *(f"{name}: {value!r}" for name, value in shown.items()), "```", ""]
    return "\n".join(text)
