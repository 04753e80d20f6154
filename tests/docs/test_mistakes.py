"""What a newcomer does wrong ends in one line that says what to do, whatever command it was."""

import errno
import json
from pathlib import Path

import pytest

from fastdss.cli import main
from fastdss.files import replacing

pytest.importorskip("pyarrow", reason="needs the [score] extra")

ROW = {"prompt": "How do I reach Anna?", "response": "Ring the bell and be polite, she is at home."}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text(json.dumps(ROW) + "\n")
    Path("empty.jsonl").write_text("")
    return tmp_path


def told(capsys, *words):
    capsys.readouterr()
    code = main(list(words))
    found = capsys.readouterr()
    assert "Traceback" not in found.err
    return code, found.out + found.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("score chats.jsonl --guard tiny --out chats.jsonl", "out: expected a folder, got the file chats.jsonl"),
        ("score nofile.jsonl --guard tiny --out s", "nofile.jsonl does not exist"),
        ("score empty.jsonl --guard tiny --out s", "the input has no rows"),
        ("check empty.jsonl", "there are no rows in it"),
        ("report nofolder", "nofolder holds no scores: there is no manifest.json, which fastdss score --out nofolder"),
        ("train --config nofile.yaml", "fastdss train: nofile.yaml: no such file or directory"),
    ],
)
def test_one_line_says_what_to_do(words, said, here, capsys):
    code, text = told(capsys, *words.split())
    assert code == 1
    assert said in text
    assert "Errno" not in text


def test_scores_in_place_of_what_merge_writes(here, capsys, monkeypatch):
    assert told(capsys, "score", "chats.jsonl", "--guard", "tiny", "--out", "scores")[0] == 0
    monkeypatch.setattr("webbrowser.open", lambda page: False)
    assert "no browser could be opened from here" in told(capsys, "report", "scores", "--open")[1]
    for words in (["check", "scores"], ["score", "scores", "--guard", "tiny", "--out", "again"]):
        code, text = told(capsys, *words)
        assert code == 1
        assert "scores holds scores, not conversations: fastdss merge scores --out training.parquet" in text
    code, text = told(capsys, "merge", "scores", "--out", "nowhere/training.parquet")
    assert code == 1
    assert text == "fastdss merge: nowhere/training.parquet: there is no folder nowhere to write into\n"
    assert told(capsys, "merge", "scores", "--out", "training.parquet")[0] == 0


def test_what_the_system_refuses_names_the_file_that_was_asked_for(tmp_path):
    """Not the temporary one beside it, and a full disk names none at all."""
    with pytest.raises(OSError, match="No space left") as refused, replacing(tmp_path / "page.html"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert refused.value.filename == str(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
