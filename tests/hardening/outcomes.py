"""What reading may give, whatever was read."""

from __future__ import annotations

from fastdss.chat.encoder import check_conversation
from fastdss.corpus.rows import FailedRow, Row


def sensible(rows: list[Row | FailedRow]) -> None:
    for row in rows:
        assert len(row.id) <= 1000
        row.id.encode()
        assert len(row.content_hash) == 64
        if isinstance(row, Row):
            assert check_conversation(0, [*row.history, {"role": "assistant", "content": row.response}])
        else:
            assert row.reason.startswith("row ")
