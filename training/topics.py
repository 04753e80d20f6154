"""Hand-written everyday advice for training, read from topics.txt."""

from pathlib import Path


def read_topics(blocks: str) -> list[tuple[list[str], list[str]]]:
    """The prompts and the sentences of each topic. A block begins with "@ " and prompts with bars between them; each
    further line is a sentence."""
    topics = []
    for block in blocks.strip().split("@ ")[1:]:
        prompts, *sentences = block.strip().split("\n")
        topics.append(([p.strip() for p in prompts.split("|")], [s.strip() for s in sentences]))
    return topics


TOPICS = read_topics((Path(__file__).parent / "topics.txt").read_text(encoding="utf-8"))
