"""``python -m tests.hardening.fuzz csv -max_total_time=600``: bytes that reach new lines of the readers and commands.

Needs ``pip install atheris`` (Linux, not in the lock). Targets: jsonl, csv, parquet, arguments; what follows the target
goes to libFuzzer, which prints the input of an error and writes it to a file.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import atheris

with atheris.instrument_imports(include=["fastdss"]):
    from fastdss import cli
    from fastdss.corpus import commands
    from fastdss.corpus.rows import DataOptions, read_rows
    from fastdss.demo import command as demo
    from fastdss.score_report import command

from .outcomes import sensible

SEEDS = {
    "jsonl": [b'{"prompt": "a", "response": "b", "id": 1}\n', b'{"messages": [{"role": "user", "content": "a"}]}\n'],
    "csv": [b'prompt,response,id\na,"b ""c"", d",1\n', b'messages\r\n"x\ny"\r\n'],
    "arguments": [
        b"score\nx.jsonl\n--guard\ntiny\n--out\no\n--every\n5\n--max-bytes\n9",
        b"train\n--data\nx\n--model\nm\n--kl\nk2\n--epochs\n1e3\n--no-packing\n--eval-share\n0.1",
        b"report\no",
        b"merge\no\n--out\nm.jsonl\n--failed\nzero",
        b"demo\n--arms\nnone,sft\n--steps\n2",
    ],
}


def reader(path: Path) -> Callable[[bytes], None]:
    """Rows that make sense, or the file refused; any other error is a finding."""

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            rows = list(read_rows([path], DataOptions(max_bytes=1000)))
        except (ValueError, OSError):
            return
        sensible(rows)
        if path.suffix != ".parquet":
            assert len(rows) <= data.count(b"\n") + data.count(b"\r") + 1

    return read


def arguments(data: bytes) -> None:
    """Parsed or refused, for every command; nothing runs but the checks of settings, and no --traceback."""
    given = data.decode("utf-8", "surrogateescape").split("\n")
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    with (
        mock.patch.object(commands, "_score", nothing),
        mock.patch.object(commands, "_merge", nothing),
        mock.patch.object(command, "_run", nothing),
        mock.patch.object(demo, "_demo", nothing),
        mock.patch.dict(sys.modules, {"fastdss.train.run.run": mock.Mock(run=nothing)}),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            assert cli.main([text for text in given if not text.startswith("--t")]) in (0, 1)
        except SystemExit as end:
            if end.code not in (0, 2):
                raise


def parquet_seed(path: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pq.write_table(pa.Table.from_pylist([{"id": 1, "messages": turns}, {"id": 2, "messages": turns}]), path)
    return path.read_bytes()


def main() -> None:
    target = sys.argv[1] if len(sys.argv) > 1 else ""
    if target not in (*SEEDS, "parquet"):
        sys.exit(f"{__doc__}\nexpected one of {', '.join(SEEDS)}, parquet; got {target!r}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{target}"
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for i, seed in enumerate(SEEDS.get(target) or [parquet_seed(path)]):
            (corpus / str(i)).write_bytes(seed)
        run = arguments if target == "arguments" else reader(path)
        atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
