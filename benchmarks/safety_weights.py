"""What weight the guard's scores give to the words around a disclosed detail, by words per chunk; no training.

    python benchmarks/safety_weights.py     # under a minute: the demo's poisoned rows of two seeds

A word that keeps a weight near 1 is imitated. The guard's verdict turns when the first private value ends, so with
one-word chunks all words of a detail but its last are imitated too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from statistics import mean

from fastdss import Guard, star_scores
from fastdss.demo.conversations import training_conversations
from fastdss.demo.leaks import find_leaks

SEEDS, CHUNKS, BEFORE = range(2), (1, 2, 3, 5, 10), 3


def weights(every: int) -> dict[str, list[float]]:
    """Scores of the chunks that words lie in, by where the words stand to the row's first detail."""
    rows = [row for seed in SEEDS for row in training_conversations(48, 48, seed) if row.parts]
    batch = {"prompt": [row.prompt for row in rows], "response": [row.response for row in rows]}
    found: dict[str, list[float]] = defaultdict(list)
    for row, scored in zip(rows, star_scores(Guard.tiny(), batch, every=every), strict=True):
        _, begin, end = min(find_leaks(row.response), key=lambda leak: leak[1])
        words = [word.span() for word in re.finditer(r"\S+", row.response)]
        inside = [i for i, (start, stop) in enumerate(words) if stop > begin and start < end]
        for i, (_, stop) in enumerate(words):
            score = scored.scores[next(k for k, cut in enumerate(scored.ends) if cut >= stop)].item()
            if inside[0] - BEFORE <= i < inside[0]:
                found[f"{inside[0] - i} before it"].append(score)
            elif i in inside:
                found["its last word" if i == inside[-1] else "its other words"].append(score)
            elif i > inside[-1]:
                found["after it"].append(score)
    return found


def main() -> None:
    places = [f"{n} before it" for n in range(BEFORE, 0, -1)] + ["its other words", "its last word", "after it"]
    print("words per chunk  " + "  ".join(places))
    for every in CHUNKS:
        found = weights(every)
        print(f"{every:<15}  " + "  ".join(f"{mean(found[place]):<{len(place)}.2f}" for place in places), flush=True)


if __name__ == "__main__":
    main()
