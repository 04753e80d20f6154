"""Score whole files of conversations, look at the result, and write a training set.

    python examples/score_files.py

The same as `fastdss score FILES --guard tiny --out scores`, `fastdss report scores` and `fastdss merge scores --out
training.parquet`. Interrupt it whenever you like: run again, it goes on where it stopped. Replace "tiny" (the small
guard that ships with fastdss; it knows disclosed contact details, nothing else) by a guard model's id or folder.
Needs, in a clone: pip install -e '.[score]'.
"""

import argparse

from fastdss import StarScorer, score_dataset
from fastdss.corpus.merge import merge
from fastdss.corpus.store import joined


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["examples/conversations.jsonl"])
    parser.add_argument("--guard", default="tiny")
    parser.add_argument("--out", default="scores")
    parser.add_argument("--merged", default="training.parquet")
    args = parser.parse_args(argv)

    manifest = score_dataset(args.data, args.out, StarScorer(args.guard, every=5), progress=True)
    print(manifest["counts"])

    lowest = sorted((min(turn.scores), row.id, turn.turn) for row, scored in joined(args.out) for turn in scored.scored)
    for score, row_id, turn in lowest[:5]:
        print(f"row {row_id}, turn {turn}: a chunk of it has P(safe) = {score:.3f}")

    print(merge(args.out, args.merged))  # datasets.load_dataset("parquet", …), then prepare_dss_dataset
    return manifest


if __name__ == "__main__":
    main()
