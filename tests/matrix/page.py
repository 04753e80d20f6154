"""docs/models.md from the matrix's table."""

from __future__ import annotations

from collections import Counter
from typing import Any

_MARKS = {"right": "yes", "refused": "refused", "as the class": "as the class", "not compared": "–", "not tried": "–"}
_HEAD = """# Models

<!-- Written by `make matrix`: not to be edited. -->

Which classes of transformers train right with fastdss, and how that is known. `make matrix` measures them all, in half
an hour on two busy CPU cores; `python -m tests.matrix CLASS` measures one.

Each class is made tiny and random from its own configuration, on a CPU, and each way of training it is compared with
the plain formula on full logits in float64, **row by row and without padding**: loss and all gradients. So a "yes" does
not say that fastdss does what the class does, but that padding, packing, accumulation and adapters change nothing.

| column | what is compared |
|---|---|
| padded | rows of several lengths in one batch by `DSSCollator` |
| left-padded | rows that came padded on the left, with their `attention_mask` |
| packed | `pack` and `DSSCollator(padding_free=True)` |
| accumulated | one step of `DSSTrainer` over two micro-batches of different sizes |
| LoRA | adapters on every linear layer (or on projections, where PEFT cannot), not at their start |
| bf16 | not further from float64 than twice the formula on the class's own bf16 logits |
| reference | `reference_logprobs` |
| images | rows with no, one and two images, padded (a few classes, below) |

- **refused**: an error names the class and the way out, before anything is trained.
- **as the class**: the class itself computes something else for a padded row than for the row alone; fastdss agrees
  with the class.
- **–**: not tried, or nothing to compare; the reason stands at the end.

Packed rows prove themselves: two short documents in one row are compared with one of them alone, once for each
attention implementation, before the first packed batch. A class that reads across documents on a CPU may not do so with
kernels of its own on a GPU (Mamba's take `seq_idx`); the proof is made where you train.
"""

_REASONS = """Where the documents of a packed row cannot be kept apart, pad instead (`padding_free=False`,
`packing=False`), or choose an attention implementation that can; the error says so."""


def page(lines: list[dict[str, Any]]) -> str:
    versions, *rows = lines
    columns = [*versions["cells"], "images"]
    counts: Counter[str] = Counter()
    body, notes = [], []
    for row in rows:
        cells = row["cells"]
        if "not tried" in cells:
            counts["classes not tried"] += 1
            notes.append(f"- `{row['class']}`: not tried: {_plain(cells['not tried'])}")
            continue
        words = {name: cells.get(name, "not tried").split(":")[0].split(",")[0] for name in columns}
        counts.update(_MARKS.get(word, word) for word in words.values())
        body.append(
            f"| `{row['class']}` | " + " | ".join(_MARKS.get(words[c], f"**{words[c]}**") for c in columns) + " |"
        )
        reasons = {_short(_plain(v.split(":", 1)[1]), row["class"]) for v in cells.values() if ":" in v}
        notes += [f"- `{row['class']}`: {reason}" for reason in sorted(reasons)]
    total = ", ".join(f"{number} {word}" for word, number in counts.most_common())
    head = ["| class | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    stamp = f"transformers {versions['transformers']}, torch {versions['torch']}: {len(rows)} classes; cells: {total}."
    return "\n".join([_HEAD, stamp, "", *head, *body, "", "## Reasons", "", _REASONS, "", *notes, ""])


def _plain(reason: str) -> str:
    return " ".join(reason.replace("|", "/").replace("<", "&lt;").split())


def _short(reason: str, name: str) -> str:
    """Without the class's name, which stands before it, without what the section says, and cut between words."""
    reason = reason.removeprefix(f"{name} ").partition(": pad instead")[0]
    return f"{reason.rpartition(' ')[0]} …" if len(reason) > 150 else reason
