"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


def write_atomically(path: Path, content: bytes) -> None:
    """Like ``path.write_bytes(content)``, but the file appears whole or not at all, see ``replacing``."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A context that gives a file to write ``path``'s new content to.

    Afterwards ``path`` holds either all of it or what it held before, even if the machine stops in between.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent} to write into", str(path))
    # A random name, since a process on another host that shares the disk may have the same process id.
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # the error that is on its way matters more than a file that cannot be removed
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):  # name the file that the user knows
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if os.name == "nt":  # Windows cannot open a folder, and has nothing to flush for it
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
