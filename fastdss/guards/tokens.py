"""The tokens that a text has where it follows a rendering."""

from __future__ import annotations

from fastdss.chat.encoder import ChatEncoder

from .spec import GuardSpec

PROBE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there. How are you?"}]


def tokens_after(encoder: ChatEncoder, spec: GuardSpec, text: str) -> tuple[int, ...]:
    """The tokens that ``text`` adds to a rendering.

    ``text`` begins with ``spec.begins``, as the spec's answers do; the tokens of this beginning are not returned.
    """
    rest = text.removeprefix(spec.begins)
    (before,), (ids,) = (encoder.encode([PROBE], suffix=spec.begins + more) for more in ("", rest))
    if ids[: len(before)] == before:
        return tuple(ids[len(before) :])
    written = _decode(encoder, before)  # the text behind it may have changed the last tokens of the rendering
    cut = next((k for k in range(len(ids), 0, -1) if _decode(encoder, ids[:k]) == written), len(ids))
    return tuple(ids[cut:])


def _decode(encoder: ChatEncoder, ids: list[int]) -> str:
    found: str = encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return found
