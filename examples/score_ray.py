"""Score files on a Ray cluster, or with several actors on this machine.

    python examples/score_ray.py --workers 2

Start it on a cluster with `ray job submit`, or set RAY_ADDRESS (`ray://host:10001` too). Each actor loads the guard
once, on one GPU, or on half a CPU where there is none. Rows travel through Ray, and this process alone writes: workers
need fastdss, but no common disk. Run it again after a crash: finished shards are not scored twice.
Needs, in a clone: pip install -e '.[scale]'.
"""

import argparse

from fastdss import StarScorer, score_dataset


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["examples/conversations.jsonl"])
    parser.add_argument("--guard", default="tiny")
    parser.add_argument("--out", default="scores_ray")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--shard-rows", type=int, default=256, help="what an actor gets at a time")
    args = parser.parse_args(argv)

    scorer = StarScorer(args.guard, every=5)
    options = {"shard_rows": args.shard_rows, "workers": args.workers}
    manifest = score_dataset(args.data, args.out, scorer, engine="ray", **options)
    print(manifest["counts"])
    return manifest


if __name__ == "__main__":
    main()
