"""``fastdss report`` on a folder that the store wrote."""

import pytest

from fastdss.chat.conversation import plain
from fastdss.cli import make_parser
from fastdss.corpus.rows import Row
from fastdss.corpus.store import ScoredRow, ScoredTurn, Shards, shard_name, write_manifest
from fastdss.score_report.command import write_report

from .entries import MANIFEST
from .test_page import Page


@pytest.fixture
def folder(tmp_path):
    """Three rows of a JSONL file, scored."""
    source = tmp_path / "chats.jsonl"
    texts = ["first answer", "second answer", "third answer"]
    source.write_text("".join(f'{{"prompt": "p", "response": "{text}"}}\n' for text in texts))
    rows = []
    for i, text in enumerate(texts):
        chat = plain([{"role": "user", "content": "p"}, {"role": "assistant", "content": text}])
        rows.append(Row(str(i), chat, (1,), chat.digest))
    scored = [
        ScoredRow(row.id, row.content_hash, [ScoredTurn(1, [0.9, 0.1 * i], [5, len(texts[i])], [])])
        for i, row in enumerate(rows)
    ]
    out = tmp_path / "scores"
    (out / "entry").mkdir(parents=True)
    name = shard_name((row.id, row.content_hash) for row in scored)
    Shards(out / "entry").write(name, scored)
    manifest = MANIFEST | {
        "inputs": [{"path": str(source)}],
        "entry": "entry",
        "finished": True,
        "shards": [name],
        "counts": {"scored": 3},
        "data": {"columns": {}, "turns": "all"},
        "options": {"every": 5, "max_bytes": 1 << 20},
    }
    write_manifest(out, manifest)
    return out


def run(*argv):
    args = make_parser().parse_args(["report", *map(str, argv)])
    args.run(args)


def blocks(path):
    return Page(path.read_text(encoding="utf-8")).data["block-0"]


def test_writes_the_page_into_the_folder_and_says_where(folder, capsys):
    run(folder)
    assert [row["response"] for row in blocks(folder / "report.html")] == [
        "first answer",
        "second answer",
        "third answer",
    ]
    assert capsys.readouterr().out == f"page  {folder / 'report.html'}\n"
    assert not list(folder.glob(".*.tmp"))


def test_limit_out_and_open(folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("webbrowser.open", seen.append)
    run(folder, "--out", tmp_path / "x.html", "--limit", 1, "--open")
    assert len(blocks(tmp_path / "x.html")) == 1
    assert seen == [(tmp_path / "x.html").as_uri()]
    run(folder, "--out", tmp_path / "x.html", "--limit", 0)
    assert len(blocks(tmp_path / "x.html")) == 3


def test_a_moved_input_leaves_the_scores_and_naming_it_brings_the_text_back(folder, tmp_path, capsys):
    moved = (tmp_path / "chats.jsonl").rename(tmp_path / "moved.jsonl")
    run(folder)
    assert all("response" not in row for row in blocks(folder / "report.html"))
    assert "The page shows scores without text" in capsys.readouterr().err
    run(folder, moved)
    assert all("response" in row for row in blocks(folder / "report.html"))
    assert "without text" not in capsys.readouterr().err


def test_an_edited_input_is_never_shown_beside_scores_of_another_text(folder, tmp_path):
    source = tmp_path / "chats.jsonl"
    source.write_text(source.read_text().replace("second", "edited"))
    assert "not what was scored" in (write_report(folder, tmp_path / "x.html") or "")
    assert all("response" not in row for row in blocks(tmp_path / "x.html"))
    with pytest.raises(ValueError, match="not what was scored"):  # named by the user: not passed over
        write_report(folder, tmp_path / "x.html", sources=[source])


def test_damaged_scores_are_an_error_and_the_old_page_stays(folder, tmp_path):
    (shard,) = (folder / "entry").glob("*.parquet")
    (tmp_path / "x.html").write_text("old")
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match="while reading"):
        write_report(folder, tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text() == "old"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "holds no scores"),
        (["{folder}", "--out", "nowhere/page.html"], "there is no folder nowhere"),
        (["{folder}", "--limit", "-1"], "got -1"),
    ],
)
def test_errors_name_what_is_wrong(folder, argv, words):
    with pytest.raises(ValueError, match=words):
        run(*(part.format(folder=folder) for part in argv))
