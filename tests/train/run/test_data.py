"""What a run of `fastdss train` reads: conversations, their scores, a model and a guard."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fastdss import Guard
from fastdss.corpus.scorer import StarScorer
from fastdss.guards.known import TINY_FOLDER
from fastdss.models import sources
from fastdss.star.scores import StarScores
from fastdss.train.run import run as train_run
from fastdss.train.run.data import RowCounts, score_rows, scored_here
from fastdss.train.run.run import load_model, run
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.train_runs import settings

pytest.importorskip("accelerate", reason="needs the [train] extra")
pytest.importorskip("datasets", reason="needs the [train] extra")
pytest.importorskip("peft", reason="needs the [train] extra")


def test_scores_are_used_again_for_the_same_data_and_guard_only(files, tmp_path, monkeypatch):
    """Damage is found, edited data and another guard of the same name are scored anew."""
    data, judge, store = tmp_path / "data.jsonl", tmp_path / "tiny_guard", tmp_path / "scores"
    data.write_bytes((files / "data.jsonl").read_bytes())
    shutil.copytree(TINY_FOLDER, judge)
    options = settings(files, tmp_path, data=str(data), guard=str(judge))
    judged = []
    real = StarScorer.score_rows
    monkeypatch.setattr(StarScorer, "score_rows", lambda *args: judged.append(1) or real(*args))

    def scores():
        judged.clear()
        score_rows(options, store, "cpu")
        chats = scored_here(store, RowCounts())
        return [row for chat in chats for row in StarScores(chat.turns).to_training_rows()], len(judged)

    whole, runs = scores()
    assert runs == 1
    assert scores() == (whole, 0)
    (shard,) = store.glob("*/*.parquet")
    shard.write_bytes(shard.read_bytes()[:-9])
    assert scores() == (whole, 1), "a damaged file was read"
    weights = load_file(judge / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, judge / "model.safetensors")
    others, runs = scores()
    assert runs == 1, "another guard under the same name"
    assert [row["star"] for row in others] != [row["star"] for row in whole]
    data.write_text(data.read_text().replace("Question 0?", "Question 0? Now."))
    rows, runs = scores()
    assert runs == 1
    assert rows[0]["messages"][0] == {"role": "user", "content": "Question 0? Now."}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.txt", "", "expected one of .jsonl"),
        ("gone.jsonl", None, "does not exist"),
        (
            "odd.jsonl",
            '{"text": "hello"}\n',
            "line 1: text alone does not tell who speaks: expected a conversation a row",
        ),
        # once trained on the user's words as if they were the assistant's
        (
            "asked.jsonl",
            '{"messages": [{"role": "user", "content": "Hi"}]}\n',
            "line 1: it has no turn of the assistant",
        ),
    ],
)
def test_data_that_cannot_be_read(files, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        run(settings(files, tmp_path / "out", data=str(tmp_path / name)))


def test_revisions_are_pinned_and_recorded(files, tmp_path, monkeypatch):
    """Of model, tokenizer and configuration; what comes with fastdss or lies in a folder has none."""
    asked = []
    for loader in (AutoTokenizer, AutoModelForCausalLM, AutoConfig):
        real = loader.from_pretrained

        def load(name, *args, real=real, loader=loader, **options):
            if name == "owner/policy":
                name = files / "model"
                asked.append((loader, options.get("revision")))
            return real(name, *args, **options)

        monkeypatch.setattr(loader, "from_pretrained", load)
    monkeypatch.setattr(sources, "_ask_hub", lambda *asked: None)
    monkeypatch.setattr(train_run, "commit_of", lambda model, revision: {"v1.2": "0123abc"}[revision])
    found = run(settings(files, tmp_path, model="owner/policy", revision="v1.2", max_steps=1))
    assert set(asked) == {(loader, "v1.2") for loader in (AutoTokenizer, AutoModelForCausalLM, AutoConfig)}
    assert found["model_commit"] == "0123abc"
    assert found["settings"]["revision"] == "v1.2"
    saved = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert saved["revision"] == "v1.2"  # the adapter is put on this commit again, and not on the latest
    for option in ("revision", "guard_revision"):
        with pytest.raises(ValueError, match=f"^{option}: only an id of the Hub has revisions"):
            settings(files, tmp_path, **{option: "v1"})


def test_a_folder_that_is_not_there(files, tmp_path, monkeypatch):
    """Said before anything is scored, and not as a bad id of the Hub."""
    monkeypatch.setattr(train_run, "score_rows", lambda *_: pytest.fail("scored first"))
    with pytest.raises(FileNotFoundError, match="model: there is no folder /no/such"):
        run(settings(files, tmp_path, model="/no/such"))
    with pytest.raises(FileNotFoundError, match=r"guard: there is no folder \./no/such"):
        Guard.from_pretrained("./no/such")
    with pytest.raises(FileNotFoundError, match="guard: there is no folder a/b/c"):
        StarScorer("a/b/c").identity()


def test_a_tokenizer_larger_than_the_model(files, tmp_path):
    """Escaped as an IndexError of torch once the first such token came."""
    tiny_model(vocab_size=100).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model: expected an embedding for its tokenizer's 320 tokens, got 100 rows"):
        load_model(settings(files, tmp_path / "out", model=str(tmp_path)), tiny_tokenizer(), bf16=False)


def test_rows_without_scores_are_left_out(files, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text((files / "data.jsonl").read_text() + '{"prompt": "a", "response": 5}\n')
    score_rows(settings(files, tmp_path, data=str(data)), tmp_path / "scores", "cpu")
    counts = RowCounts()
    assert len(list(scored_here(tmp_path / "scores", counts))) == 8
    assert counts.as_json() == {
        "read": 9,
        "without scores": 1,
        "reasons": {"line 9: response: expected text, got int": 1},
    }
