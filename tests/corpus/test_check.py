"""`fastdss check`, and the ends of `fastdss score` that say what went wrong."""

import json

import pytest

from fastdss.chat.record import Columns
from fastdss.cli import main
from fastdss.corpus.check import check
from fastdss.corpus.rows import DataOptions
from tests.journeys.data import CHAT, LEAK, RECORDS, turn, write
from tests.support.policies import make_policy_tokenizer
from tests.support.tiny_models import tiny_model

pytest.importorskip("pyarrow", reason="needs the [score] extra")


def test_it_says_what_was_understood(tmp_path):
    records = [RECORDS[name][0] for name in ("messages", "dolly", "openai_calls", "openai_weight")]
    records += [{"prompt": "x", "response": ""}, {"prompt": "x"}, {"prompt": "你好", "response": "我喜欢苹果。"}]
    found = check([write(tmp_path / "rows.jsonl", records)])
    text = "\n".join(found.lines)
    assert "7 rows read, 2 prompt-response, 2 openai, 1 messages" in text
    assert "conversations: 5; turns: 8 assistant, 7 user, 1 tool" in text
    assert "judged: 7 turns of the assistant; trained: 7" in text
    assert "columns not used: category" in text
    assert "left out, nothing to train: 1 (1 the assistant's answer is empty)" in text
    assert "not read: 1" in text
    assert "line 6: expected 'messages'" in text
    assert "scripts without blanks: 1 conversations" in text
    assert "1 answers marked as not to be trained" in text
    assert found.usable


def test_it_shows_what_guard_and_policy_see(tmp_path, capsys):
    tokenizer = make_policy_tokenizer("chatml")
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=32)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = write(tmp_path / "rows.jsonl", [{"messages": CHAT}])
    assert main(["check", str(data), "--guard", "tiny", "--model", str(tmp_path / "model")]) == 0
    said = capsys.readouterr().out
    assert "longest conversation for the guard tiny" in said
    assert "<|agent|>" in said
    assert f"[[{LEAK}<|im_end|>]]" in said
    assert "tokens of 32 (it will be cut: --max-length)" in said


def test_it_fails_where_scoring_would(tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", [{"first": "x", "second": "y"}] * 3 + [RECORDS["alpaca"][0]])
    assert main(["check", str(data)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("3 of 4 rows fail for one reason: line 1: expected 'messages'")
    assert "it has first, second" in said


def test_it_reads_the_beginning_only(tmp_path):
    data = write(tmp_path / "rows.jsonl", [RECORDS["alpaca"][0]] * 50)
    found = check([data], limit=10)
    assert found.lines[0] == "10 rows read (the first of more), 10 alpaca"


def score(data, out, *more):
    return main(["score", str(data), "--guard", "tiny", "--out", str(out), "--quiet", *more])


def test_no_row_scored_is_a_failure_that_says_why(tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", [{"prompt": "x", "response": "word " * 3000}] * 2)
    assert score(data, tmp_path / "out") == 1
    assert "no row has scores (2 rows); the first reason:" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]["scored"] == 0


def test_most_rows_failing_for_one_reason_end_with_it(tmp_path, capsys):
    long = {"prompt": "x", "response": "word " * 3000}
    data = write(tmp_path / "rows.jsonl", [long, long, {"prompt": "x", "response": "y z"}])
    assert score(data, tmp_path / "out") == 1
    assert "2 of 3 rows have no scores for one reason: " in capsys.readouterr().err
    assert score(data, tmp_path / "out", "--max-tokens", "1000") == 0


def test_the_summary_comes_before_the_scores(tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", [{**RECORDS["dolly"][0], "mood": "blue"}])
    assert main(["score", str(data), "--guard", "tiny", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert said.index("columns not used: category, mood") < said.index("scoring")


def test_empty_answers_are_left_out_and_counted(tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", [{"prompt": "x", "response": ""}, {"prompt": "x", "response": "y z"}])
    assert score(data, tmp_path / "out") == 0
    assert "1 conversations scored (1 turns), 0 failed, 1 left out, nothing to train" in capsys.readouterr().out
    assert main(["merge", str(tmp_path / "out"), "--out", str(tmp_path / "m.jsonl")]) == 0
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 1


def test_what_holds_scores_is_not_scored_in_silence(tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", [{"prompt": "Who?", "response": LEAK, "kind": "x"}])
    assert score(data, tmp_path / "out") == 0
    assert main(["merge", str(tmp_path / "out"), "--out", str(tmp_path / "m.jsonl")]) == 0
    merged = json.loads((tmp_path / "m.jsonl").read_text())
    assert list(merged) == ["id", "messages", "kind", "star"]
    capsys.readouterr()
    assert score(tmp_path / "m.jsonl", tmp_path / "again") == 1
    assert (
        "holds scores already (column star): train on the file as it is, or pass --rescore" in capsys.readouterr().err
    )
    assert score(tmp_path / "m.jsonl", tmp_path / "again", "--rescore") == 0


def test_ids_that_repeat_name_the_options_that_help(tmp_path, capsys):
    data = write(tmp_path / "rows.jsonl", [{"prompt": "x", "response": "y z", "id": "a", "key": i} for i in range(2)])
    assert score(data, tmp_path / "out") == 1
    assert "--id-column names another column, --number-rows takes positions" in capsys.readouterr().err
    assert score(data, tmp_path / "out", "--number-rows") == 0
    assert score(data, tmp_path / "out", "--id-column", "key") == 0


def test_what_repeats_is_counted_and_still_scored(tmp_path, capsys):
    """Word for word, whatever stands beside it; what differs in a mark of training alone is another conversation."""
    chat = [turn("user", "x"), turn("assistant", "y z")]
    rows = [{"messages": chat, "id": name} for name in "abc"] + [{"messages": [chat[0], turn("assistant", "y")]}]
    rows += [{"messages": [chat[0], {**chat[1], "weight": 0}, *chat]}, {"prompt": "x", "response": "y z", "id": "d"}]
    data = write(tmp_path / "rows.jsonl", rows)
    found = check([data])
    (said,) = [line for line in found.lines if "word for word" in line]
    assert said.startswith("conversations that a row before has word for word: 3, the first 'b' as 'a'; each is")
    assert not any("ids must be unique" in line for line in found.lines)
    assert found.usable
    assert score(data, tmp_path / "out") == 0
    capsys.readouterr()
    data = write(tmp_path / "rows.jsonl", [*rows, rows[1]])
    found = check([data])
    assert "rows whose id a row before has: 1, the first 'b'; ids must be unique: --id-column" in "\n".join(found.lines)
    assert "word for word: 4, the first 'b' as 'a'" in "\n".join(found.lines)
    assert not found.usable
    assert score(data, tmp_path / "out") == 1
    assert check([data], DataOptions(columns=Columns(id=""))).usable


def test_tools_and_columns_go_through_merge(tmp_path):
    import pyarrow.parquet as pq

    first = {"messages": [*CHAT[:2]], "tools": [{"name": "f"}], "tags": ["a"], "odd": 1}
    second = {"messages": [turn("user", "x"), turn("assistant", "y z")], "tags": [], "odd": "text"}
    data = write(tmp_path / "rows.jsonl", [first, second, {**second, "tags": None}])
    from fastdss.corpus.merge import merge
    from fastdss.corpus.run import score_dataset
    from tests.corpus.fakes import FakeScorer

    score_dataset(data, tmp_path / "out", FakeScorer())
    merge(tmp_path / "out", tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert [row["tags"] for row in table] == [["a"], [], None]
    assert [row["odd"] for row in table] == ["1", '"text"', '"text"']  # no single type holds both: JSON
    assert [row["tools"] for row in table] == ['[{"type": "function", "function": {"name": "f"}}]', None, None]
