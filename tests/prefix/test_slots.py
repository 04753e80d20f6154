"""Slots never overlap, keep what they hold, and use what others gave back; whatever happens in what order."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdss.prefix.slots import Slots


class Owner:
    """Something that can be held weakly."""


@torch.inference_mode()
def write(slots: Slots, owner: Owner, size: int, number: int) -> None:
    rows = slots.store.layer(0, torch.empty(1, 1, 1, 1), torch.empty(1, 1, 1, 1))
    for part in rows:
        part[:, slots.base(owner) : slots.base(owner) + size] = number


def holds(slots: Slots, owner: Owner, size: int) -> set[int]:
    return {int(x) for part in slots.store.layers[0] for x in part[0, slots.base(owner) :][:size].flatten()}


STEPS = st.lists(
    st.tuples(st.sampled_from(["join", "grow", "copy", "leave", "lose"]), st.integers(0, 9), st.integers(1, 300)),
    max_size=30,
)


@given(STEPS)
def test_every_slot_keeps_its_own(steps: list[tuple[str, int, int]]) -> None:
    slots = Slots()
    held: dict[Owner, tuple[int, int]] = {}  # its size, and the number all of it holds
    for number, (what, which, size) in enumerate(steps, start=1):
        owner = list(held)[which % len(held)] if held else None
        if what == "join" or owner is None:
            owner = Owner()
            slots.reserve(owner, size, 0)
        elif what == "grow":
            slots.reserve(owner, held[owner][0] + size, held[owner][0])
            assert holds(slots, owner, held[owner][0]) == {held[owner][1]}
            size += held[owner][0]
        elif what == "copy":
            twin = Owner()
            slots.copy(owner, twin, held[owner][0])
            held[twin] = held[owner]
            continue
        else:
            if what == "leave":
                slots.release(owner)
            del held[owner]
            owner = twin = None
            continue
        write(slots, owner, size, number)
        held[owner] = size, number
        for other, (length, value) in held.items():
            assert holds(slots, other, length) == {value}
            assert slots.base(other) + length <= slots.store.capacity


def test_a_gap_is_filled_before_the_store_grows() -> None:
    slots, owners = Slots(), [Owner() for _ in range(3)]
    for owner in owners:
        slots.reserve(owner, 64, 0)
    capacity, base = slots.store.capacity, slots.base(owners[1])
    slots.release(owners.pop(1))
    owners.append(Owner())
    slots.reserve(owners[-1], 60, 0)
    assert (slots.store.capacity, slots.base(owners[-1])) == (capacity, base)


def test_a_slot_grows_where_it_is_while_there_is_room() -> None:
    slots, first, second = Slots(), Owner(), Owner()
    slots.reserve(first, 64, 0)
    slots.reserve(second, 64, 0)
    slots.reserve(Owner(), 500, 0)  # gone at once: its room is free again
    base = slots.base(second)
    slots.reserve(second, 150, 64)
    assert slots.base(second) == base
    slots.reserve(first, 150, 64)
    assert slots.base(first) != 0
