"""Changes to a guard's spec by name, so that a command line can do what ``dataclasses.replace`` does in Python."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastdss.errors import UserError

from .known import KNOWN
from .spec import GuardSpec
from .vendors import with_stated_fields
from .view import View

_OWN = ("date", "other_weight", "earlier")


def parse_options(given: list[str]) -> dict[str, Any]:
    """``["risk_name=jailbreak", "prompt=@card.txt"]`` as names and values; a value is the text of the file after ``@``,
    else JSON where it can be read as such, else text."""
    options: dict[str, Any] = {}
    for item in given:
        name, found, value = item.partition("=")
        if not found or not name:
            raise UserError(f"guard option: expected NAME=VALUE or NAME=@FILE, got {item!r}")
        if name in options:
            raise UserError(f"guard option: {name} is given twice")
        options[name] = _read(name, value[1:]) if value.startswith("@") else _json(value)
    return options


def with_options(spec: GuardSpec, options: Mapping[str, Any], template: str | Mapping[str, str] | None) -> GuardSpec:
    """``spec`` with ``options``, each of which is one of these:

    - a variable of the chat template (``risk_name``, ``excluded_category_keys``, …), or a key of a variable that is a
      mapping: ``risk_name`` sets ``guardian_config["risk_name"]``;
    - ``questions``: the names of the questions to ask;
    - ``earlier``: ``summed`` or ``likeliest``, how the answer's earlier fields are read; ``stated``: their values;
    - ``date``, ``other_weight``: the spec's fields of these names.

    Options from which the spec was made (a text of the model card) are skipped. ``ValueError`` for an option that does
    not exist; it names those that do.
    """
    made_of = {name for known in KNOWN if known.sample().name == spec.name for name in known.parameters}
    texts = _texts(spec)
    if "stated" in options and "earlier" in options:
        raise UserError(f"{spec.name}: stated: the fields have these values, or are read as earlier says: not both")
    for name, value in options.items():
        if name not in made_of and value not in texts:
            spec = _with_option(spec, name, value, template)
    return spec


def _with_option(spec: GuardSpec, name: str, value: Any, template: str | Mapping[str, str] | None) -> GuardSpec:
    if name == "questions" and spec.questions:
        wanted = _names(value)
        if not wanted or not set(wanted) <= set(spec.questions):
            raise UserError(f"{spec.name}: questions: expected some of {', '.join(spec.questions)}, got {value!r}")
        return replace(spec, questions={question: spec.questions[question] for question in wanted})
    if name == "stated" and spec.fields:
        values = _names(value)
        if len(values) != len(spec.fields):
            raise UserError(f"{spec.name}: stated: expected {len(spec.fields)} values, got {len(values)}")
        return with_stated_fields(
            spec, *(_one_of(spec, field.values, v) for field, v in zip(spec.fields, values, strict=True))
        )
    if name in _OWN and (name != "earlier" or spec.fields):
        if name == "other_weight" and not isinstance(value, int | float):
            raise UserError(f"{spec.name}: other_weight: expected a number, got {value!r}")
        return replace(spec, **{name: value})
    if value and "think" in name and spec.template_kwargs.get(name) is False:
        raise UserError(
            f"{spec.name}: {name}: expected False, got {value!r}: its verdict is read at once, where it would begin to "
            "reason"
        )
    outer, _, inner = name.rpartition(".")
    holders = [outer] if outer else [key for key, held in spec.template_kwargs.items() if isinstance(held, Mapping)]
    for holder in holders:
        held = spec.template_kwargs.get(holder)
        if isinstance(held, Mapping) and (inner in held or outer or _is_variable(inner, template)):
            return replace(spec, template_kwargs={**spec.template_kwargs, holder: {**held, inner: value}})
    if name in spec.template_kwargs or _is_variable(name, template):
        return replace(spec, template_kwargs={**spec.template_kwargs, name: value})
    raise UserError(
        f"{spec.name}: no option {name!r}; it has {', '.join(names_of(spec))}, and its template's variables"
    )


def names_of(spec: GuardSpec) -> list[str]:
    """The options that ``spec`` takes, without the variables that only its template names."""
    nested = [key for held in spec.template_kwargs.values() if isinstance(held, Mapping) for key in held]
    flat = [key for key, held in spec.template_kwargs.items() if not isinstance(held, Mapping)]
    more = [
        name
        for name, there in (("questions", spec.questions), ("earlier", spec.fields), ("stated", spec.fields))
        if there
    ]
    return [*nested, *flat, *more, *(["other_weight"] if spec.other else []), "date"]


def _texts(spec: GuardSpec) -> list[str]:
    """The user's texts that the spec holds already, also with a leading ``<s>``, which WildGuard's spec leaves out.

    They are recognised by their text, since the spec may have another name than the known one that it was made by.
    """
    view = spec.messages
    if not isinstance(view, View):
        return []
    held = [view.prompt, view.system_prompt, view.instruction]
    return [text for part in held if part for text in (part, f"<s>{part}")]


def _is_variable(name: str, template: str | Mapping[str, str] | None) -> bool:
    """Whether the template, or one of several, mentions ``name``."""
    texts = template.values() if isinstance(template, Mapping) else [template or ""]
    return name.isidentifier() and any(re.search(rf"\b{name}\b", text) for text in texts)


def _names(value: Any) -> list[str]:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else [str(part) for part in value]


def _one_of(spec: GuardSpec, known: tuple[str, ...], value: str) -> str:
    """The one of a field's values that equals ``value`` but for blanks around it."""
    found = [text for text in known if text.strip() == value.strip()]
    if not found:
        raise UserError(f"{spec.name}: stated: expected one of {[text.strip() for text in known]}, got {value!r}")
    return found[0]


def _read(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"guard option {name}: {path} cannot be read as text ({type(error).__name__})") from None


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
