"""Reads a user's own specs from files: YAML for a spec that is only data, Python for one with a function."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fastdss.errors import UserError

from .known import find_known
from .spec import AnswerField, GuardSpec
from .view import View

_TEXTS = {f.name for f in fields(GuardSpec) if f.name != "messages"} | {"view", "like"}
_VIEW = {f.name for f in fields(View)}
_WORDS = ("safe", "unsafe", "other")


def read_spec(text: str, options: Mapping[str, Any]) -> GuardSpec:
    """The spec that ``text`` names: a ``.yaml`` file, ``FILE.py:NAME``, or a known guard."""
    path, _, name = text.rpartition(":")
    if path.endswith(".py"):
        return _from_python(path, name)
    if text.endswith((".yaml", ".yml")):
        return _from_yaml(Path(text), options)
    return find_known(text, options)


def _from_python(path: str, name: str) -> GuardSpec:
    found = importlib.util.spec_from_file_location(Path(path).stem, path)
    if not Path(path).is_file() or found is None or found.loader is None:
        raise UserError(f"spec: {path} is no Python file")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    spec = getattr(module, name, None)
    if not isinstance(spec, GuardSpec):
        raise UserError(f"spec: expected a GuardSpec called {name!r} in {path}, got {type(spec).__name__}")
    return spec


def _from_yaml(path: Path, options: Mapping[str, Any]) -> GuardSpec:
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"spec: {path} cannot be read ({type(error).__name__})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"spec: {path} is no YAML{place}") from None
    if not isinstance(given, dict):
        raise UserError(f"spec: {path}: expected names and values, got {type(given).__name__}")
    return spec_from(given, options, where=str(path))


def spec_from(given: Mapping[str, Any], options: Mapping[str, Any] | None = None, *, where: str = "spec") -> GuardSpec:
    """The spec that plain data describes: ``GuardSpec``'s fields, but ``view``, the fields of a ``View``, in place of
    ``messages``.

    ``like`` names a known guard, whose spec has the fields that are not given.
    """
    unknown = set(given) - _TEXTS
    if unknown:
        raise UserError(f"{where}: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(sorted(_TEXTS))}")
    like = given.get("like")
    base = find_known(str(like), options or {}) if like is not None else None
    if base is None and "name" not in given:
        raise UserError(f"{where}: a spec needs a name")
    try:
        values = {name: _value(name, value) for name, value in given.items() if name not in ("view", "like")}
        if "view" in given:
            values["messages"] = _view(given["view"], base)
        return GuardSpec(**values) if base is None else replace(base, **values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _view(given: Any, base: GuardSpec | None) -> View:
    if not isinstance(given, Mapping) or set(given) - _VIEW:
        raise UserError(f"view: expected some of {', '.join(f.name for f in fields(View))}")
    start = base.messages if base is not None and isinstance(base.messages, View) else View()
    try:
        return replace(start, **given)
    except UserError as error:
        raise UserError(f"view.{error}") from None


def _value(name: str, value: Any) -> Any:
    """``value`` as the field ``name`` of a ``GuardSpec``, which checks it. YAML has lists for tuples and makes dates of
    days; that it reads a bare ``no`` as false is told here, where it can happen."""
    if name in _WORDS and any(isinstance(word, bool) for word in (value if isinstance(value, list) else [value])):
        raise UserError(f"{name}: expected text, got bool; put it in quotes")
    if name == "fields" and isinstance(value, list):
        return tuple(map(_field, value))
    if name == "date":
        return str(value)
    return tuple(value) if isinstance(value, list) else value


def _field(item: Any) -> AnswerField:
    if not isinstance(item, Mapping) or set(item) != {"prefix", "values"} or not isinstance(item["values"], list):
        raise UserError("fields: expected a prefix and a list of values each")
    return AnswerField(item["prefix"], tuple(item["values"]))
