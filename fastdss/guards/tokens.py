"""The tokens of an answer: those of a text as it follows a rendering."""

from __future__ import annotations

from fastdss.chat.encoder import ChatEncoder

from .spec import GuardSpec

PROBE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there. How are you?"}]


def tokens_after(encoder: ChatEncoder, spec: GuardSpec, text: str) -> tuple[int, ...]:
    """Tokens of ``text``, which begins as the spec's answers do, after those of a rendering with that beginning."""
    rest = text.removeprefix(spec.begins)
    (before,), (ids,) = (encoder.encode([PROBE], suffix=spec.begins + more) for more in ("", rest))
    if ids[: len(before)] == before:
        return tuple(ids[len(before) :])
    written = _decode(encoder, before)  # with text behind it, the rendering's end may be divided into other tokens
    cut = next((k for k in range(len(ids), 0, -1) if _decode(encoder, ids[:k]) == written), len(ids))
    return tuple(ids[cut:])


def _decode(encoder: ChatEncoder, ids: list[int]) -> str:
    found: str = encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return found
