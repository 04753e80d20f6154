"""Makes the encoders that render a conversation as a spec asks: one, or one for each of its questions."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from fastdss.chat.encoder import ChatEncoder

from .spec import GuardSpec

_TODAY = re.compile(r"""\bstrftime_now\b(?:\(\s*(['"])(.*?)\1)?""")


def make_encoders(spec: GuardSpec, tokenizer: Any) -> list[ChatEncoder]:
    """An encoder for each question of the spec, or one. Where the template asks for today's date, they render the
    spec's date instead."""
    template = spec.template
    if prints_date(spec, tokenizer):
        template = with_fixed_date(_template(spec, tokenizer), spec.date)
    return [
        ChatEncoder(
            tokenizer,
            template=template,
            template_kwargs={**spec.template_kwargs, **variables},
            messages=spec.messages,
        )
        for variables in list(spec.questions.values()) or [{}]
    ]


def prints_date(spec: GuardSpec, tokenizer: Any) -> bool:
    """Whether the template that the spec renders asks for today's date."""
    return _TODAY.search(_template(spec, tokenizer)) is not None


def with_fixed_date(template: str, day: str) -> str:
    """``template`` with ``day`` for today's date, so that scores do not change overnight.

    transformers gives templates the function ``strftime_now`` and offers no way to replace it, so the result begins
    with a macro of the same name, which hides it.
    """
    fixed = date.fromisoformat(day)
    forms = {form: fixed.strftime(form) for _, form in _TODAY.findall(template) if form}
    refusal = "raise_exception('it prints a date in a form that is no literal')"
    return f"{{%- macro strftime_now(form) -%}}{{{{- {forms!r}[form] or {refusal} -}}}}{{%- endmacro -%}}{template}"


def _template(spec: GuardSpec, tokenizer: Any) -> str:
    template = spec.template or getattr(tokenizer, "chat_template", None) or ""
    return template.get("default", "") if isinstance(template, dict) else template
