"""Many responses that are written at the same time, read along by one guard in shared forwards.

    python examples/score_streams.py
    python examples/score_streams.py --data chats.jsonl --at-a-time 32 --threshold 0.3

What a server does with the texts of its users, played from a file of prompts and responses: at every tick each response
that is being written gets its next words, and all boundaries that are due go through the guard together. A response
whose score falls is stopped where it stands, one that ends makes room for the next. The guard that ships with fastdss
knows disclosed contact details, nothing else; ``Guard.from_pretrained`` loads others.
"""

import argparse
import json
import re
from pathlib import Path

from fastdss import Guard, StarStream


def words_of(text: str, count: int) -> list[str]:
    """The text in pieces of ``count`` words, as a model might have sent them."""
    words = re.findall(r"\S+\s*", text)
    return ["".join(words[first : first + count]) for first in range(0, len(words), count)]


def main(argv: list[str] | None = None) -> list[StarStream]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="examples/conversations.jsonl")
    parser.add_argument("--at-a-time", type=int, default=8, help="responses being written")
    parser.add_argument("--words", type=int, default=3, help="of each response at a tick")
    parser.add_argument("--every", type=int, default=5, help="words to a boundary")
    parser.add_argument("--threshold", type=float, default=0.5)
    args = parser.parse_args(argv)

    waiting = [json.loads(line) for line in Path(args.data).read_text(encoding="utf-8").splitlines()]
    streams = Guard.tiny().streams()
    writing: dict[StarStream, list[str]] = {}  # the words that are still to come
    done: list[StarStream] = []
    while waiting or writing:
        while waiting and len(writing) < args.at_a_time:
            row = waiting.pop(0)
            writing[streams.open(row["prompt"], every=args.every)] = words_of(row["response"], args.words)

        pieces = {stream: words.pop(0) for stream, words in writing.items() if words}
        new = streams.append(pieces, ended=writing.keys() - pieces.keys())

        for stream in list(writing):
            if stream in new.failed:
                told = f"failed: {new.failed[stream]}"
            elif any(not score >= args.threshold for score in new.scores[stream]):  # NaN is no sign of safety
                told = "stopped"
                stream.abandon()  # others may have its place in the guard
            elif stream.closed:
                told = "finished"
            else:
                continue
            lowest = min(stream.scores, default=float("nan"))
            print(f"{told} after {len(stream.text)} characters, lowest {lowest:.3f}: {stream.history[-1]['content']}")
            done.append(stream)
            del writing[stream]
    return done


if __name__ == "__main__":
    main()
