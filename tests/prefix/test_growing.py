"""Texts that grow, on their own: what a slot holds is what it says it holds, also after a forward that was lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fastdss import Guard
from fastdss.prefix.engine import reference_logits
from fastdss.prefix.growing import GrowingTexts
from tests.support.builders import make_guard


class Owner:
    """Anything that can be held weakly."""


@pytest.fixture(scope="module")
def guard() -> Guard:
    return make_guard()


def grown(guard: Guard) -> GrowingTexts:
    return GrowingTexts(guard.model, guard.token_ids, guard.head)


def renderings(guard: Guard, *texts: str) -> list[list[int]]:
    return [guard.encode_prefixes([{"role": "user", "content": "Hello"}], text, [len(text)])[0] for text in texts]


def expected(guard: Guard, rows: Sequence[Sequence[int]]) -> Tensor:
    """One forward per rendering."""
    return reference_logits(guard.model, guard.token_ids, [list(row) for row in rows])


def test_a_text_that_did_not_change_is_read_again(guard: Guard) -> None:
    """No new token: the last one is computed once more, whoever's segment stands before it."""
    texts, first, second = grown(guard), Owner(), Owner()
    one, other, more = renderings(guard, "You can call", "Mail anna", "Mail anna, or call her")
    texts.logits({first: [one], second: [other]})
    found = texts.logits({first: [one]})
    assert torch.allclose(found, expected(guard, [one]), rtol=0, atol=1e-5)
    found = texts.logits({second: [more], first: [one, one]})
    assert torch.allclose(found, expected(guard, [more, one, one]), rtol=0, atol=1e-5)


def test_a_slot_that_moves_takes_along_what_it_holds(guard: Guard) -> None:
    """Neighbours grow by turns, so that each is in the other's way."""
    texts, owners = grown(guard), [Owner(), Owner()]
    text, moved = ["call", "mail"], set()
    for _ in range(7):
        for k, owner in enumerate(owners):
            text[k] += " her at home, or write to anna" * 2
            found = texts.logits({owner: renderings(guard, text[k])})
            assert torch.allclose(found, expected(guard, renderings(guard, text[k])), rtol=0, atol=1e-5)
        moved.add(texts._slots.base(owners[0]))
    assert len(moved) > 1


@pytest.mark.parametrize("count", [1, 2])
def test_after_a_lost_forward_every_text_is_computed_anew_where_it_may_have_been_written_over(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The forward has written before it fails, and the next text may be the one from before."""
    texts, owner = grown(guard), Owner()
    run = texts._runner.run

    def lost(segments, store):
        run(segments, store)
        raise RuntimeError("lost")

    before, *tried = renderings(guard, "You can call her today", "You can mail", "You can mail her at home today")
    texts.logits({owner: [before]})
    monkeypatch.setattr(texts._runner, "run", lost)
    with pytest.raises(RuntimeError, match="lost"):
        texts.logits({owner: tried[:count]})
    monkeypatch.setattr(texts._runner, "run", run)
    found = texts.logits({owner: [before]})
    assert torch.allclose(found, expected(guard, [before]), rtol=0, atol=1e-5)
