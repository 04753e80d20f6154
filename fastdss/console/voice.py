"""One voice for all commands: progress and remarks on stderr, what was found as one table, or as JSON, on stdout."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

_FORM = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_SELDOM = 15.0  # seconds between lines where stderr is a file


def add_voice(parser: argparse.ArgumentParser) -> None:
    """The flags that every command has."""
    parser.add_argument("--quiet", action="store_true", help="say only what went wrong, and the result")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout, for programs")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")


def hush_imports() -> None:
    """What libraries log while they are imported (torchao: what it has for other chips) is no command's to say."""
    for library in ("torchao", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)


def progress_bar(total: int, what: str, unit: str, *, done: int = 0, shown: bool = True) -> Any:
    """A bar with rate and time left: ``update(n)``, ``set_postfix_str(text)``, ``close()``, or a ``with`` around it."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=f" {unit}",
        bar_format=_FORM,
        disable=not shown,
        smoothing=0.05,
        mininterval=0.2 if terminal else _SELDOM,
        dynamic_ncols=terminal,
    )


def tell_result(args: argparse.Namespace, found: Mapping[str, Any], lines: Sequence[tuple[str, object]]) -> None:
    """Print ``found`` as JSON where that is asked for, else ``lines`` as a table of names and values."""
    if args.json:
        print(json.dumps(json.loads(json.dumps(found, default=str), parse_constant=lambda _: None), indent=1))
        return
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


def remark(args: argparse.Namespace, text: str) -> None:
    """A line beside the result."""
    if not args.quiet:
        print(text, file=sys.stderr)


@contextmanager
def one_voice(*, quiet: bool = False) -> Iterator[None]:
    """Within it, other libraries draw no bars and say only what goes wrong, and fastdss's own remarks are seen."""
    from transformers.utils import logging as theirs

    ours, level = logging.getLogger("fastdss"), theirs.get_verbosity()
    shown, before = _handler(), ours.level
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    bars = _bars_of_datasets(False)
    ours.addHandler(shown)
    ours.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.filterwarnings("ignore", category=kind, module=r"(?!fastdss)")
            yield
    finally:
        ours.removeHandler(shown)
        ours.setLevel(before)
        theirs.set_verbosity(level)
        theirs.enable_progress_bar()
        if bars:
            _bars_of_datasets(True)


def _handler() -> logging.Handler:
    """To stderr as it is now, above a bar that is being drawn."""
    handler = _AboveBars()
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


class _AboveBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _bars_of_datasets(shown: bool) -> bool:
    """Switch them; whether they were on. Without the package there are none."""
    try:
        import datasets
    except ImportError:
        return False
    was = not datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    return was
