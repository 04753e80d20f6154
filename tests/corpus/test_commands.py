"""`fastdss score` and `fastdss merge` with the real tiny guard, from the shell to a training set."""

import signal
import subprocess
import sys
import time

import pytest

from fastdss import Guard, prepare_dss_dataset, score_dataset
from fastdss.cli import main
from fastdss.corpus import scorer
from fastdss.corpus.merge import merge
from fastdss.corpus.scorer import StarScorer
from fastdss.corpus.store import load_manifest, read_scores
from fastdss.demo.conversations import training_conversations

from .fakes import FakeScorer, content_of, conversations, write_jsonl

pq = pytest.importorskip("pyarrow.parquet", reason="needs the [score] extra")
datasets = pytest.importorskip("datasets", reason="needs the [score] extra")


ROWS = [{"prompt": row.prompt, "response": row.response} for row in training_conversations(12, 12, seed=3)]


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def score(source, out, *more):
    return ["score", str(source), "--guard", "tiny", "--out", str(out), "--shard-rows", "4", "--quiet", *more]


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_command_that_was_ended_goes_on_to_the_same_bytes(source, tmp_path, capsys, end):
    assert main(score(source, tmp_path / "undisturbed")) == 0
    assert "24 conversations scored (24 turns), 0 failed" in capsys.readouterr().out
    expected, out = content_of(tmp_path / "undisturbed"), tmp_path / "ended"
    gemm = load_manifest(tmp_path / "undisturbed")["numerics"]["gemm"]  # measured; another run may measure otherwise
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"  # background jobs ignore it
    start += "from fastdss.corpus import scorer; from fastdss.cli import main; from functools import partial;"
    start += f"scorer.StarScorer = partial(scorer.StarScorer, gemm={gemm!r}); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, *score(source, out)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(out.glob("*/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(end)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == (130 if end == signal.SIGINT else -end)
    assert not load_manifest(out)["finished"]
    assert "Traceback" not in errors
    assert "it/s" not in errors  # --quiet holds for the loading of the guard too
    assert main(score(source, out)) == 0
    assert content_of(out) == expected


def test_two_guards_and_every_turn_from_the_shell_to_a_merged_file(tmp_path, capsys):
    turns = [
        {"role": r, "content": text}
        for row in ROWS[:2]
        for r, text in (("user", row["prompt"]), ("assistant", row["response"]))
    ]
    source, out = (
        write_jsonl(tmp_path / "rows.jsonl", [{"id": "a", "messages": turns[:2]}, {"id": "b", "messages": turns[2:]}]),
        tmp_path / "out",
    )
    more = ["--guard", "tiny", "--combine", "min", "--turns", "all"]
    assert main(score(source, out, *more)) == 0
    manifest = load_manifest(out)
    assert manifest["guard"] == ["tiny", "tiny"]
    assert (manifest["options"]["combine"], manifest["options"]["turns"]) == ("min", "all")
    assert main(["merge", str(out), "--out", str(tmp_path / "merged.parquet")]) == 0
    assert pq.read_table(tmp_path / "merged.parquet")["id"].to_pylist() == ["a", "b"]
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "guard <b>tiny, tiny</b>" in page
    assert "combine <b>min</b>" in page
    assert "turns <b>all</b>" in page
    short = manifest["revision"][0].removeprefix("sha256:")[:12]
    assert f"revision <b>{short}, {short}</b>" in page


def test_an_interrupt_says_how_to_go_on(source, tmp_path, capsys, monkeypatch):
    """Honestly: it promised finished parts where there were none."""
    real, left = FakeScorer.score_rows, [0]

    def interrupt(*args):  # not by a signal: started in the background, a process ignores SIGINT
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*args)

    monkeypatch.setattr(FakeScorer, "score_rows", interrupt)
    monkeypatch.setattr(scorer, "StarScorer", lambda guard, **options: FakeScorer(guard))
    out = tmp_path / "out"
    assert main(score(source, out)) == 130
    error = capsys.readouterr().err
    assert f"No part of {out} was finished: the same command starts anew" in error
    assert "Traceback" not in error
    left[0] = 1
    assert main(score(source, out)) == 130
    assert f"1 of 6 parts are kept in {out}: the same command goes on from there." in capsys.readouterr().err
    left[0] = 9
    assert main(score(source, out)) == 0
    assert left[0] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--every", "0"], "every: expected a positive integer"),
        (["--prompt-column", "question"], "none of the 24 rows is a conversation"),
        (["--engine", "ranks"], "torchrun"),
        (["--shard-rows", "0"], "shard_rows"),
        (["--guard", "/no/such/folder/llama-guard-3"], "/no/such/folder"),
    ],
)
def test_bad_arguments_end_in_one_line(source, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(Guard, "from_pretrained", lambda *_, **__: pytest.fail("a guard was about to load"))
    assert main(score(source, tmp_path / "out", *arguments)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """24 readable rows, one that is longer than the tiny guard's context, one that holds no conversation."""
    folder = tmp_path_factory.mktemp("finished")
    refused = {"messages": [{"role": r, "content": f"some {r} text " * 900} for r in ("user", "assistant")]}
    source = write_jsonl(folder / "rows.jsonl", [*ROWS, refused, {"prompt": "no response"}])
    assert main(score(source, folder / "out")) == 0
    return folder / "out"


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize(("failed", "rows"), [("drop", 24), ("zero", 25)])
def test_merged_scores_are_a_training_set(finished, tmp_path, capsys, suffix, failed, rows):
    file = tmp_path / f"merged.{suffix}"
    assert main(["merge", str(finished), "--out", str(file), "--failed", failed]) == 0
    assert capsys.readouterr().out.startswith(f"conversations  {rows}\nleft out       {26 - rows} without scores\n")
    kind = {"parquet": "parquet", "jsonl": "json"}[suffix]
    merged = datasets.load_dataset(kind, data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    scores = {row.id: row for row in read_scores(finished)}
    assert merged.column_names == ["id", "messages", "star"]
    for row in merged:
        (judged,) = row["star"]
        expected = [turn.scores or [0.0] for turn in scores[row["id"]].turns]
        assert [judged["scores"]] == [pytest.approx(values, abs=1e-7) for values in expected]
        assert judged["text"] == row["messages"][judged["turn"]]["content"]
        assert judged["ends"][-1] <= len(judged["text"])
    plain = "{% for turn in messages %}{{ turn['role'] + ': ' + turn['content'] + ' ' }}{% endfor %}"
    prepared = prepare_dss_dataset(merged, Guard.tiny().tokenizer, template=plain)
    assert len(prepared) == rows
    lowest = [min(w for w, label in zip(r["token_weights"], r["labels"], strict=True) if label >= 0) for r in prepared]
    assert min(lowest[:24]) < 0.5 < max(lowest[:24])  # half of the rows are poisoned
    if failed == "zero":
        last = prepared[24]
        assert {w for w, label in zip(last["token_weights"], last["labels"], strict=True) if label >= 0} == {0.0}


def test_merge_refuses_what_would_lose_data(tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", conversations(5))
    score_dataset(source, tmp_path / "out", FakeScorer(), shard_rows=2)
    before = source.read_bytes()
    with pytest.raises(ValueError, match="is the input of these scores"):
        merge(tmp_path / "out", source)
    with pytest.raises(ValueError, match=r"expected a \.parquet or \.jsonl file"):
        merge(tmp_path / "out", tmp_path / "merged.csv")
    with pytest.raises(ValueError, match="failed: expected one of drop, zero"):
        merge(tmp_path / "out", tmp_path / "merged.parquet", failed="safe")
    elsewhere = write_jsonl(tmp_path / "elsewhere.jsonl", conversations(5))
    with pytest.raises(ValueError, match="is the input of these scores"):
        merge(tmp_path / "out", elsewhere, sources=[elsewhere])
    assert elsewhere.read_bytes() == before
    write_jsonl(source, conversations(5, first=1))
    with pytest.raises(ValueError, match="not what was scored"):
        merge(tmp_path / "out", tmp_path / "merged.parquet")
    source.write_bytes(before)
    manifest = load_manifest(tmp_path / "out")
    (tmp_path / "out" / manifest["entry"] / f"{manifest['shards'][0]}.parquet").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        merge(tmp_path / "out", tmp_path / "merged.parquet")
    assert not list(tmp_path.glob("*merged*"))
    assert source.read_bytes() == before


@pytest.mark.slow
def test_engines_agree_on_the_tiny_guard(tmp_path):
    rows, scorer = ROWS[8:16], StarScorer("tiny", gemm="default")
    here = score_dataset(rows, tmp_path / "here", scorer, shard_rows=4)
    score_dataset(rows, tmp_path / "there", scorer, shard_rows=4, engine="datasets", workers=2)
    assert here["counts"]["scored"] == 8
    for one, other in zip(read_scores(tmp_path / "here"), read_scores(tmp_path / "there"), strict=True):
        assert one.id == other.id
        for turn, twin in zip(one.turns, other.turns, strict=True):
            assert turn.scores == pytest.approx(twin.scores, abs=1e-6)
            assert (turn.turn, turn.ends, turn.flags) == (twin.turn, twin.ends, twin.flags)
