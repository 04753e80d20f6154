"""Parts of fastdss that need packages which a plain installation lacks: using one raises an error that names the extra
to install."""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

from .errors import UserError

_EXTRA_OF = {  # module that may be missing -> an extra that installs it
    "accelerate": "train",
    "datasets": "train",
    "matplotlib": "viz",
    "peft": "train",
    "pyarrow": "score",
    "ray": "scale",
    "trl": "train",
    "zstandard": "score",
}


class MissingExtraError(UserError, ImportError):
    """A part of fastdss was used whose optional packages are not installed."""


def missing_extra(what: str, extra: str, error: ImportError) -> MissingExtraError:
    """The error for using ``what``, a part of fastdss that needs the packages of ``extra``."""
    return MissingExtraError(
        f"{what} needs packages that are not installed ({error}): pip install 'fastdss[{extra}]', or in a clone of "
        f"fastdss pip install -e '.[{extra}]'"
    )


def require(what: str, extra: str, *modules: str) -> None:
    """Raise ``MissingExtraError`` unless ``modules`` can be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise missing_extra(what, extra, error) from error


class Unavailable:
    """A stand-in for a public name whose module could not be imported: ``dir`` and ``help`` work, any use raises."""

    def __init__(self, name: str, error: ImportError) -> None:
        self.__name__ = self.__qualname__ = name
        self._error = error
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA_OF:
            raise error  # the missing package is not optional: the installation is broken, and must not hide it
        self._extra = _EXTRA_OF[package]
        self.__doc__ = f"Not available here: {missing_extra(name, self._extra, error)}"

    def _refuse(self) -> NoReturn:
        raise missing_extra(f"fastdss.{self.__name__}", self._extra, self._error) from self._error

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse()

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        self._refuse()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)  # help() and inspect look such names up, and expect an AttributeError
        self._refuse()

    def __repr__(self) -> str:
        return f"<fastdss.{self.__name__}: needs fastdss[{self._extra}]>"
