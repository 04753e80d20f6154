"""Rows and their scores as the store gives them, small and by hand."""

from fastdss.chat.conversation import plain
from fastdss.corpus.rows import Row
from fastdss.corpus.store import ScoredRow, ScoredTurn

MANIFEST = {
    "guard": "tiny",
    "revision": "0123abcd",
    "inputs": [{"path": "chats.jsonl", "rows": 3}],
    "columns": {"prompt": "prompt"},
    "options": {"every": 5, "unit": "word", "max_tokens": None},
    "versions": {"fastdss": "0.1.0"},
    "counts": {"scored": 3, "failed": 0},
    "shards": ["0a0a0a"],
}
# Ends a script, calls one, quotes every way, reorders, hides, breaks lines of JavaScript, and is no valid Unicode.
HOSTILE = (
    '</script><script>document.title="taken"</script><img src=x onerror="document.title=\'taken\'">'
    "<svg/onload=document.title='taken'>`${document.title='taken'}`</textarea></title></style>"
    "\u2028\u2029\u202egnp.exe\u202c\x00\x1b\ufeff\ud800<!--<script>]]>&lt;&amp;"
)


def entry(
    name="a", scores=(0.9, 0.8), *, response=None, ends=None, flags=(), error=None, history=None, text=True, exact=None
):
    """One entry; without ``response`` every chunk is the five characters ``word ``."""
    response = "word " * len(scores) if response is None else response
    ends = [round(len(response) * (k + 1) / len(scores)) for k in range(len(scores))] if ends is None else ends
    history = [{"role": "user", "content": "a question"}] if history is None else history
    chat = plain([*history, {"role": "assistant", "content": response}])
    row = Row(name, chat, (len(history),), "hash") if text else None
    return row, ScoredRow(name, "hash", [ScoredTurn(len(history), list(scores), list(ends), list(flags), error, exact)])


def failed(name="f", reason="the guard's logits are not finite", **more):
    return entry(name, (), flags=["failed"], error=reason, **more)
