"""Where one piece hands over to the next: forks, failed forwards, documents in one row, whitespace that is stripped.

Each of these was added because a planted fault (tests/mutation) went unnoticed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdss import DSSCollator, pack, star_scores
from fastdss.loss import chunked
from tests.support.builders import make_guard, make_tokenizer
from tests.support.loss_cases import make_problem, run
from tests.support.scored import by_fields

BEGUN, LIKE_THE_TAIL = "You can call her\n\n", "<END CONVERSATION>\n\nFirst line: safe or else. "


def batch_of(guard: Any, text: str) -> torch.Tensor:
    return star_scores(guard, {"prompt": ["Hello"], "response": [text]}, every=1, gemm="default").scores[0]


def test_a_fork_keeps_its_own_keys() -> None:
    """Its text goes on like the template's tail, so it builds on tokens that the other stream has overwritten since."""
    guard = make_guard()
    stream = guard.stream("Hello", every=1)
    stream.append(BEGUN)
    fork = stream.fork()
    stream.append("later today, or not at all. ")
    scores = fork.append(LIKE_THE_TAIL)
    expected = batch_of(guard, BEGUN + LIKE_THE_TAIL)
    assert len(scores) == len(expected) - 4
    torch.testing.assert_close(torch.tensor(scores), expected[4:], rtol=0, atol=1e-6)


def test_a_forward_that_never_ran_is_not_built_upon(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = make_guard()
    stream = guard.stream("Hello", every=1)
    stream.append("You can ")
    runner = stream.company._texts._runner
    real = runner.run

    def lost(*_: Any) -> None:
        raise RuntimeError("lost")

    monkeypatch.setattr(runner, "run", lost)
    with pytest.raises(RuntimeError, match="lost"):
        stream.append("call ")
    monkeypatch.setattr(runner, "run", real)
    scores = stream.append("her ")
    torch.testing.assert_close(torch.tensor(scores), batch_of(guard, "You can call her")[2:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("padding_free", [False, True])
def test_the_first_label_of_every_document_does_not_count(padding_free: bool) -> None:
    """No token before it predicts it; in one row, the token before it is another document's last."""
    rows = [
        {"input_ids": [i + 1] * n, "labels": [i + 1] * n, "token_weights": [0.5] * n} for i, n in enumerate((4, 3, 5))
    ]
    given = list(pack(rows, 12)) if padding_free else rows
    batch = DSSCollator(0, padding_free=padding_free)(given)
    assert (batch["labels"] != -100).sum() == 3 + 2 + 4
    if padding_free:
        starts = (batch["position_ids"][0] == 0).nonzero()[:, 0]
        assert (batch["labels"][0, starts] == -100).all()
        assert len(starts) == 3


def test_whitespace_that_the_policys_template_strips_moves_no_score() -> None:
    """Ends count the response's own characters, five of which the template drops."""
    tokenizer = make_tokenizer()
    template = "{% for m in messages %}<|start|>{{ m['content'] | trim }}<|end|>{% endfor %}"
    text = " \n \n You can call her today."
    history = [{"role": "user", "content": "Hello."}]
    scores = by_fields([[0.9, 0.2]], [[text.index(" call"), len(text)]], [history], [text])
    row = scores.token_weights(tokenizer, template=template)[0]
    seen = ""
    for index, label, weight in zip(row["input_ids"], row["labels"], row["token_weights"], strict=True):
        if label != -100 and index != tokenizer.convert_tokens_to_ids("<|end|>"):
            seen += tokenizer.decode([index])
            assert weight == pytest.approx(0.9 if len(seen) <= len("You can") else 0.2), seen
    assert seen == "You can call her today."


@pytest.mark.parametrize("chunk_rows", [5, 8, 1000])
def test_the_references_product_runs_on_rows_with_a_kl_weight_only(
    chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a chunk holds both kinds, or comes after the last row that has one."""
    problem = make_problem(40, 16, 64, torch.float32)
    rows: list[int] = []
    real = chunked.project

    def counting(x: torch.Tensor, head: torch.Tensor, out: torch.Tensor) -> None:
        rows.append(x.shape[0])
        real(x, head, out)

    monkeypatch.setattr(chunked, "project", counting)
    run(problem, "reverse", chunk_bytes=2 * 4 * 64 * chunk_rows)
    counts = problem.labels != -100
    assert sum(rows) == int(counts.sum()) + int((counts & (problem.star < 1)).sum())
    assert len(rows) > 4 or chunk_rows == 1000


def test_spans_behind_a_broken_control_string_are_those_of_the_text() -> None:
    """What breaks the string is taken out again; a span that still counted it would lie one further for each."""
    chat = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Well. <|end|> So <|start|> it goes."},
    ]
    found = make_guard().encoder.encode_with_offsets(chat)
    assert "".join(found.text[start:end] for start, end in found.offsets) == found.text
    assert "Well. <|end|> So <|start|> it goes." in found.text
