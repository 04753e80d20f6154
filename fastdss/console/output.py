"""How every command prints: progress and remarks on stderr, the result on stdout, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

_BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_LINE_FORMAT = _BAR_FORMAT.replace("|{bar}|", "")
_SECONDS_BETWEEN_LINES = 15.0  # where stderr is no terminal, so that every state of a bar is a line: a choice


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command has: how much it prints, and in which form."""
    parser.add_argument("--quiet", action="store_true", help="say only what went wrong, and the result")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout, for programs")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")


def silence_import_logs() -> None:
    """Silence what libraries log at import, such as torchao's list of kernels for other chips: nobody can act on it."""
    for library in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # DeepSpeed sets its own level as it is imported, and then tells which device it found.
    logging.getLogger("DeepSpeed").addFilter(_is_no_finding)


def _is_no_finding(record: logging.LogRecord) -> bool:
    return record.module != "real_accelerator" or record.levelno >= logging.ERROR


def progress_bar(total: int, what: str, unit: str, *, done: int = 0, shown: bool = True) -> Any:
    """A bar of tqdm with rate and time left, to be used as a context manager or closed by ``close()``.

    Where stderr is no terminal there is no bar to redraw: its numbers are a line now and then.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        file=sys.stderr if terminal else _Lines(sys.stderr),
        total=total,
        initial=done,
        desc=what,
        unit=f" {unit}",
        bar_format=_BAR_FORMAT if terminal else _LINE_FORMAT,
        disable=not shown,
        smoothing=0.05,  # a choice below tqdm's 0.3: batches differ in length, and with 0.3 the rate jumps
        mininterval=0.2 if terminal else _SECONDS_BETWEEN_LINES,
        dynamic_ncols=terminal,
    )


class _Lines:
    """What tqdm writes to go back and draw over its last state, written as lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=self._stream)

    def flush(self) -> None:
        self._stream.flush()


def print_result(args: argparse.Namespace, as_json: Mapping[str, Any], table: Sequence[tuple[str, object]]) -> None:
    """Print ``as_json`` if ``--json`` was given (JSON has no NaN: null), else ``table``, names beside values."""
    if args.json:
        print(json.dumps(json.loads(json.dumps(as_json, default=str), parse_constant=lambda _: None), indent=1))
        return
    width = max((len(name) for name, _ in table), default=0)
    for name, value in table:
        print(f"{name:<{width}}  {value}")


def print_remark(args: argparse.Namespace, text: str) -> None:
    """Print a line on stderr, beside the result, unless ``--quiet`` was given."""
    if not args.quiet:
        print(text, file=sys.stderr)


@contextmanager
def quiet_libraries(*, quiet: bool = False) -> Iterator[None]:
    """Within the context other libraries log errors only and draw no bars, and fastdss's own log reaches stderr.
    What they print goes there too, since stdout is the result's.

    quiet: of fastdss's own log, show warnings only.
    """
    from transformers.utils import logging as transformers_logging

    logger, handler = logging.getLogger("fastdss"), _handler()
    level, transformers_level = logger.level, transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets_had_bars = _switch_bars_of_datasets(False)
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            for kind in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.filterwarnings("ignore", category=kind, module=r"(?!fastdss)")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        transformers_logging.set_verbosity(transformers_level)
        transformers_logging.enable_progress_bar()
        if datasets_had_bars:
            _switch_bars_of_datasets(True)


def _handler() -> logging.Handler:
    handler = _AboveBars()
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


class _AboveBars(logging.Handler):
    """Writes to ``sys.stderr`` as it is at that moment, above a bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _switch_bars_of_datasets(shown: bool) -> bool:
    """Switch the bars of ``datasets`` on or off; returns whether they were on (False where it is not installed)."""
    try:
        import datasets
    except ImportError:
        return False
    was = not datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    return was
