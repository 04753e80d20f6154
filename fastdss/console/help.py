"""The form of every command's help: a short usage line, each option's default, and example commands at the end."""

from __future__ import annotations

import argparse

from fastdss.upstream.argparse import HelpFormatter, options_of

EXAMPLES = {  # command -> commands to begin with
    "": (
        "fastdss check chats.jsonl",
        "fastdss score chats.jsonl --guard tiny --out scores",
        "fastdss report scores --open",
        "fastdss merge scores --out training.parquet",
        "fastdss train training.parquet --model smollm2 --out run",
    ),
    "demo": ("fastdss demo", "fastdss demo --quick --out look.html"),
    "check": ("fastdss check chats.jsonl", "fastdss check chats.jsonl --guard tiny --model smollm2"),
    "score": (
        "fastdss score chats.jsonl --guard tiny --out scores",
        "fastdss score chats.jsonl --guard meta-llama/Llama-Guard-3-1B --every 10 --out scores",
    ),
    "report": ("fastdss report scores --open",),
    "merge": ("fastdss merge scores --out training.parquet",),
    "guards": ("fastdss guards", "fastdss guards show tiny"),
    "train": (
        "fastdss train training.parquet --model smollm2 --out run",
        "fastdss train chats.jsonl --guard tiny --model my/model --kl reverse --out run",
        "fastdss train training.parquet --model smollm2 --out run --resume",
    ),
}


def shape(parser: argparse.ArgumentParser, command: str = "") -> None:
    """Give a parser the form of help that all commands share. Call it once the parser has all of its options."""
    parser.formatter_class = HelpFormatter
    parser.epilog = "\n".join(["examples:", *(f"  {line}" for line in EXAMPLES[command])])
    if command:  # argparse would write out every option, 30 lines before each error
        needed = [option for option in options_of(parser) if option.option_strings and option.required]
        words = [f"{option.option_strings[-1]} {option.metavar}" for option in needed]
        parser.usage = " ".join([parser.prog, *_positionals(parser), *words, "[options]"])


def _positionals(parser: argparse.ArgumentParser) -> list[str]:
    """The positional arguments of a command, in the form in which argparse shows them."""
    form = {None: "{0}", "?": "[{0}]", "*": "[{0} ...]", "+": "{0} [{0} ...]"}
    found = [option for option in options_of(parser) if not option.option_strings]
    names = ["{" + ",".join(map(str, option.choices)) + "}" if option.choices else option.metavar for option in found]
    return [form[option.nargs].format(name) for option, name in zip(found, names, strict=True)]  # type: ignore[index]
