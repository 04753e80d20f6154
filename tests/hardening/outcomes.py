"""What reading may give, whatever was read."""

from __future__ import annotations

from fastdss.corpus.rows import FailedRow, Row


def sensible(rows: list[Row | FailedRow]) -> None:
    for row in rows:
        assert len(row.id) <= 1000
        row.id.encode()
        assert len(row.content_hash) == 64
        if isinstance(row, Row):
            assert row.conversation.turns[row.judged[-1]].role == "assistant"
            for turn in row.conversation.turns:
                turn.answer.text.encode()
        else:
            assert row.reason.startswith(("row ", "line "))
