"""The guards that fastdss knows. Templates are the guards' own, rendered at run time; nothing here copies them."""

from __future__ import annotations

from .guard import GuardSpec

TINY = GuardSpec("fastdss-tiny-guard", answer_prefix="\n\n", safe="safe", unsafe="unsafe")


def find_spec(name: str) -> GuardSpec:
    """The spec of a guard by its Hub id or path; ``ValueError`` when none is known."""
    raise ValueError(f"no GuardSpec is known for {name!r}; pass spec=GuardSpec(...)")
