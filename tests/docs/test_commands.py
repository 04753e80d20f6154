"""Every command line that the documentation shows is one that exists and takes these options."""

import re
import tomllib
from itertools import chain

import pytest

from fastdss.cli import make_parser, parse
from fastdss.upstream.argparse import commands_of, options_of

from .blocks import PAGES, ROOT, commands

SHOWN = [pytest.param(place, words, id=place) for page in PAGES for place, words in commands(page)]
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
OTHERS = {"git", "pre-commit", "ray", "swift", "twine"}  # programs that are not ours; nothing here to hold them against
# Named alone: of benchmarks (the command stands before them), of ms-swift, of hypothesis.
OTHERS_OPTIONS = {"--case", "--shape", "--responses", "--model", "--head-only", "--tokens", "--rounds"}
OTHERS_OPTIONS |= {"--external_plugins", "--loss_type", "--hypothesis-profile"}


def parses(words):
    """Whether ``fastdss`` takes these arguments; nothing of it runs."""
    try:
        return bool(parse(words))
    except SystemExit as ended:  # --version and its like, or what argparse refuses
        return not ended.code


def after_launcher(words):
    """What torchrun or ``accelerate launch`` starts: a script, or the words after ``-m``."""
    for at, word in enumerate(words[1:], 1):
        if word == "-m" or word.endswith(".py"):
            return words[at:]
    raise AssertionError(words)


def check(words):
    program = words[0].rpartition("/")[2]
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
        program = words[0].rpartition("/")[2]
    if program == "fastdss":
        assert parses(words[1:]), words
    elif program in ("torchrun", "accelerate"):
        check(["python", *after_launcher(words)])
    elif program == "python":
        check_python(words[1:])
    elif program == "make":
        assert words[1] in TARGETS, words
    elif program == "pip":
        for word in words:
            for extras in re.findall(r"\[([\w.,]+)\]", word):
                assert set(extras.split(",")) <= EXTRAS | {"..."}, words
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if word.startswith("tests"))
    else:
        assert program in OTHERS, f"no test knows {program}: {words}"


def check_python(words):
    if words[:2] == ["-m", "fastdss"]:
        assert parses(words[2:]), words
    elif words[0] == "-m":
        module = ROOT / words[1].replace(".", "/")
        assert words[1] in ("pytest", "pip") or module.with_suffix(".py").exists() or module.is_dir(), words
    else:
        script = ROOT / words[0]
        assert script.exists(), words
        options = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
        source = script.read_text()
        assert all(f'"{option}"' in source for option in options), words


@pytest.mark.parametrize(("place", "words"), SHOWN)
def test_the_command_exists(place, words):
    check(words)


def options_in(text):
    """Of each inline piece of code, the command of fastdss that it names, if any, and each of its options."""
    for code in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        named = re.match(r"fastdss (\w+)|--", code)
        if named:
            yield from ((named[1], option) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code))


def test_every_option_that_the_text_names_exists():
    parser = make_parser()
    known = {command.prog.split()[-1]: {*chain(*(o.option_strings for o in options_of(command)))}
             for command, _ in commands_of(parser)}  # fmt: skip
    known[None] = {*chain(*(o.option_strings for o in options_of(parser)))} | OTHERS_OPTIONS
    found = [(page.name, *named) for page in PAGES for named in options_in(page.read_text())]
    assert len(found) > 60
    assert [named for named in found if named[2] not in known[named[1]]] == []
    assert list(options_in("`fastdss score --backend` and `--x`")) == [("score", "--backend"), (None, "--x")]


def test_an_option_of_several_commands_is_explained_once():
    """``fastdss train`` scores too, from settings of its own; what an option means must not depend on who has it."""
    helps = {
        parser.prog.split()[-1]: {name: action.help for action in options_of(parser) for name in action.option_strings}
        for parser, _ in commands_of(make_parser())
    }
    apart = {"--guard", "--revision", "--config", "--out", "--method", "--help"}  # of another thing in each command
    of_score = helps["score"].keys() - apart
    shared = [(command, option) for command in ("check", "train") for option in of_score & helps[command].keys()]
    assert len(shared) > 20
    for command, option in shared:
        meaning = re.split(r"; several| \(default", helps["score"][option])[0]
        assert helps[command][option].startswith(meaning), (command, option)


@pytest.mark.parametrize(
    "wrong",
    [
        ["fastdss", "score", "chats.jsonl"],
        ["fastdss", "scores", "chats.jsonl", "--guard", "tiny", "--out", "scores"],
        ["torchrun", "-m", "fastdss", "merge", "scores", "--no-such-option"],
        ["python", "examples/no_such_script.py"],
        ["python", "examples/fsdp2.py", "--no-such-option"],
        ["make", "no-such-target"],
        ["pip", "install", "fastdss[no_such_extra]"],
        ["no-such-program"],
    ],
    ids=" ".join,
)
def test_the_check_is_one(wrong):
    with pytest.raises(AssertionError):
        check(wrong)
