"""``fastdss guards``: lists the known guards, and shows the tokens that one of them gets for a sample conversation."""

from __future__ import annotations

import argparse
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from fastdss.console.output import print_result
from fastdss.errors import UserError

if TYPE_CHECKING:
    from .known import Known
    from .spec import GuardSpec

_SAMPLE = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "Who lives next door?"},
    {"role": "assistant", "content": "I do not know; shall I look?"},
    {"role": "user", "content": "Please do."},
    {"role": "assistant", "content": "One moment."},
    {"role": "tool", "content": "next door: Ann"},
    {"role": "assistant", "content": "It is Ann, since May."},
]


def add_guards(commands: Any) -> None:
    """Register ``guards`` on the subparsers of ``argparse``; ``args.run(args)`` then runs it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "guards",
        help="list the known guard models, or show what one is asked",
        description="Lists the guards that fastdss knows: what each judges, what its spec was checked against, and "
        "what you must bring. 'fastdss guards show GUARD' renders a sample conversation for a guard and marks the "
        "tokens that are read as its verdict; it loads the tokenizer, not the weights.",
    )
    parser.add_argument("action", nargs="?", choices=("list", "show"), default="list", help="what to do")
    parser.add_argument("guard", nargs="?", metavar="GUARD", help="of show: a Hub id, a folder, or 'tiny'")
    add_guard_options(parser)
    parser.add_argument("--revision", help="commit, tag or branch of the guard on the Hub")
    parser.add_argument("--markdown", action="store_true", help="the list as a table for a page")
    parser.set_defaults(run=_run)


def add_guard_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how a guard is asked, for every command that takes one."""
    parser.add_argument(
        "--spec",
        metavar="NAME|FILE.yaml|FILE.py:NAME",
        help="how the guard is asked, where its name does not tell: a known guard, or a spec of your own, "
        "see docs/guards.md",
    )
    parser.add_argument(
        "--guard-option",
        action="append",
        default=[],
        metavar="NAME=VALUE|NAME=@FILE",
        help="a variable of the guard's template or of its spec, such as risk_name=jailbreak, or the text of its model "
        "card from a file, such as prompt=@card.txt; several: give it several times",
    )


def _run(args: argparse.Namespace) -> None:
    from .known import KNOWN

    if args.action == "list" and args.json:
        print_result(args, {"guards": [_facts(known) for known in KNOWN]}, [])
    elif args.action == "list":
        print(markdown_table() if args.markdown else "\n\n".join(map(_entry, KNOWN)))
    elif args.guard is None:
        raise UserError("guards show: expected a guard: a Hub id, a folder or 'tiny'")
    else:
        shown = _shown(args)
        print_result(args, {"guard": args.guard, "shown": shown}, []) if args.json else print(shown)


def _facts(known: Known) -> dict[str, Any]:
    spec = known.sample()
    found = {"guard": known.example, "judges": spec.judges, "checked": spec.checked}
    return found | {"needs": list(known.texts), "note": spec.note}


def _entry(known: Known) -> str:
    spec = known.sample()
    lines = [known.example, f"  judges   {spec.judges}", f"  checked  {spec.checked}"]
    if known.texts:
        wanted = " ".join(f"--guard-option {text}=@FILE" for text in known.texts)
        lines.append(f"  needs    the text of its model card: {wanted}")
    if note := _note(spec):
        lines.append(f"  note     {note}")
    return "\n".join(lines)


def markdown_table() -> str:
    """The known guards as a table of Markdown, as docs/guards.md has it."""
    from .known import KNOWN

    rows = ["| guard | judges | you bring | checked against | note |", "|---|---|---|---|---|"]
    for known in KNOWN:
        spec = known.sample()
        needs = ", ".join(f"`{text}`" for text in known.texts)
        cells = (f"`{known.example}`", spec.judges, needs, spec.checked, _shown_as_text(_note(spec)))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _shown_as_text(note: str) -> str:
    """``note`` with tags such as ``<score>`` in backticks, since Markdown would take them for HTML and hide them."""
    return re.sub(r"</?[a-z]+>", r"`\g<0>`", note)


def _note(spec: GuardSpec) -> str:
    """The spec's note, after a remark on how the fields before the verdict are read."""
    names = " and ".join(prefix.rpartition("\n")[2].strip(' {":,') for prefix, _ in spec.fields)
    read = {"summed": "summed over", "likeliest": "given the likeliest"}[spec.earlier]
    return "; ".join(text for text in (f"{read} {names}" if names else "", spec.note) if text)


def _shown(args: argparse.Namespace) -> str:
    """The sample as the guard sees it: its spec, the tokens of the rendering, and what is read as the verdict."""
    from transformers import AutoTokenizer

    from .answers import compile_answers
    from .known import TINY, TINY_FOLDER, check_guard_source, read_config
    from .loading import resolve_spec
    from .options import parse_options
    from .questions import make_encoders, prints_date
    from .sight import check_sight, find_sight
    from .tokens import tokens_after

    name = str(TINY_FOLDER) if args.guard == "tiny" else args.guard
    check_guard_source(name, args.revision)
    config = read_config(name, revision=args.revision)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=args.revision, trust_remote_code=False)
    wanted = args.spec or (TINY if args.guard == "tiny" else None)
    spec = resolve_spec(name, config, tokenizer, spec=wanted, options=parse_options(args.guard_option))
    encoder, *others = make_encoders(spec, tokenizer)
    words = spec.head == "words"
    only_response = getattr(spec.messages, "turns", None) == "response"
    check_sight(spec.name, encoder, generation_prompt=words, only_response=only_response)
    sight = find_sight(encoder, generation_prompt=words)
    (ids,) = encoder.encode([_SAMPLE], generation_prompt=words, suffix=spec.begins)
    lines = [f"{args.guard}: {spec.name}", f"judges: {spec.judges or '-'}", f"checked: {spec.checked or 'by nobody'}"]
    seen = [part for part, shown in sight._asdict().items() if shown]
    lines.append(f"shown beside prompt and response: {', '.join(seen) or 'nothing'} (of system, earlier turns, tool)")
    if others:
        lines.append(f"asked {len(others) + 1} questions, the first below: {', '.join(spec.questions)}")
    if prints_date(spec, tokenizer):
        lines.append(f"the date that it prints: {spec.date}")
    lines += ["", _tokens(tokenizer, ids)]
    if words:
        answers = compile_answers(spec, partial(tokens_after, encoder, spec), tokenizer)
        for place in answers.places:
            options = ", ".join(f"{tokenizer.decode([token])!r} ({token})" for token in place.options)
            begun = f"{tokenizer.decode(list(place.ids))!r}, then " if place.ids else ""
            lines.append(f">>> {begun}one of {options}")
    else:
        lines.append(f">>> classes {', '.join(word for group in spec.words for word in group)}")
    if note := _note(spec):
        lines += ["", f"note: {note}"]
    return "\n".join(lines)


def _tokens(tokenizer: Any, ids: list[int]) -> str:
    """Tokens divided by bars, with a line break after each token that holds one."""
    pieces = [tokenizer.decode([token], skip_special_tokens=False) for token in ids]
    return "".join(piece.replace("\n", "\\n") + ("\n" if "\n" in piece else "|") for piece in pieces)
