"""Reads a user's own specs from files: YAML for a spec that is only data, Python for one with a function."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from fastdss.errors import UserError

from .known import find_known
from .spec import AnswerField, GuardSpec
from .view import View

_TEXTS = {f.name for f in fields(GuardSpec) if f.name not in ("messages", "fields")} | {"fields", "view", "like"}
_VIEW = {f.name: get_type_hints(View)[f.name] for f in fields(View)}
_LISTS = ("safe", "unsafe", "other")


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
    values = {name: _value(where, name, value) for name, value in given.items() if name not in ("view", "like")}
    like = given.get("like")
    base = find_known(str(like), options or {}) if like is not None else None
    if "view" in given:
        values["messages"] = _view(where, given["view"], base)
    if base is not None:
        return replace(base, **values)
    if "name" not in values:
        raise UserError(f"{where}: a spec needs a name")
    return GuardSpec(values.pop("name"), **values)


def _view(where: str, given: Any, base: GuardSpec | None) -> View:
    if not isinstance(given, Mapping) or set(given) - set(_VIEW):
        raise UserError(f"{where}: view: expected some of {', '.join(_VIEW)}")
    for name, value in given.items():
        expected = bool if "bool" in str(_VIEW[name]) else str
        if not isinstance(value, expected):
            raise UserError(f"{where}: view.{name}: expected {expected.__name__}, got {type(value).__name__}")
    start = base.messages if base is not None and isinstance(base.messages, View) else View()
    return replace(start, **given)


def _value(where: str, name: str, value: Any) -> Any:
    if name == "fields":
        return tuple(_field(where, item) for item in _a(list, where, name, value))
    if name in _LISTS:
        return value if isinstance(value, str) else tuple(_a(str, where, name, v) for v in _a(list, where, name, value))
    if name in ("template_kwargs", "questions"):
        return _a(dict, where, name, value)
    default = next(f.default for f in fields(GuardSpec) if f.name == name)
    if name == "other_weight":
        return _a((int, float), where, name, value)
    return _a(bool if isinstance(default, bool) else str, where, name, str(value) if name == "date" else value)


def _field(where: str, item: Any) -> AnswerField:
    if not isinstance(item, Mapping) or set(item) != {"prefix", "values"}:
        raise UserError(f"{where}: fields: expected a prefix and values each")
    values = _a(list, where, "fields.values", item["values"])
    return AnswerField(
        _a(str, where, "fields.prefix", item["prefix"]), tuple(_a(str, where, "fields.values", v) for v in values)
    )


def _a(kind: Any, where: str, name: str, value: Any) -> Any:
    """``value``, which must be of ``kind``. YAML reads a bare ``no`` as false, so the error asks for quotes."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = kind.__name__ if isinstance(kind, type) else "a number"
        hint = "; put it in quotes" if expected == "str" else ""
        raise UserError(f"{where}: {name}: expected {expected}, got {type(value).__name__}{hint}")
    return value
