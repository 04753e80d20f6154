"""The streaming example runs as it stands, on a tiny random policy and the guard that ships with fastdss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastdss import Guard, star_scores
from tests.support.builders import make_model, make_tokenizer
from tests.support.example_scripts import DATA, main_of


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    """A random policy that writes tokens of all kinds, bytes of unfinished characters too."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = make_tokenizer()
    make_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(policy: str, threshold: str, *options: str):
    size = ["--tokens", "60", "--every", "1", "--temperature", "1"]
    return main_of("score_stream")(["--model", policy, "--prompt", "Hello", "--threshold", threshold, *size, *options])


@pytest.mark.parametrize("unit", ["word", "token"])
def test_the_finished_text_has_the_batchs_scores(policy, capsys, unit) -> None:
    stream = run(policy, "0", "--unit", unit)
    batch = star_scores(Guard.tiny(), {"prompt": ["Hello"], "response": [stream.text]}, every=1, unit=unit)
    assert stream.ends == batch.ends[0]
    assert torch.allclose(torch.tensor(stream.scores), batch.scores[0], rtol=0, atol=1e-6)
    assert "finished; " in capsys.readouterr().out
    assert len(stream.ends) > 2


def test_generation_stops_at_the_first_low_score(policy, capsys) -> None:
    whole, stream = (run(policy, threshold) for threshold in ("0", "1"))
    assert "stopped; " in capsys.readouterr().out
    assert whole.text.startswith(stream.text)
    assert len(stream.text) < len(whole.text)
    assert stream.scores[-1] < 1


def test_many_streams_are_stopped_where_the_batch_has_its_first_low_score(capsys) -> None:
    rows = [json.loads(line) for line in Path(DATA[1]).read_text().splitlines()]
    batch = {name: [row[name] for row in rows] for name in ("prompt", "response")}
    alone = {item.response: item for item in star_scores(Guard.tiny(), batch)}
    done = main_of("score_streams")([*DATA, "--at-a-time", "5"])
    stopped = 0
    for stream in done:
        (whole,) = (item for text, item in alone.items() if text.startswith(stream.text))
        expected = whole.scores[: len(stream.scores)]
        assert torch.allclose(torch.tensor(stream.scores), expected, rtol=0, atol=1e-6)
        low = (whole.scores < 0.5).nonzero()[:, 0].tolist()
        if low:
            stopped += 1
            # a tick of three words holds one boundary, or none
            assert [k for k, score in enumerate(stream.scores) if score < 0.5] == low[:1]
        else:
            assert stream.ends == whole.ends
    assert len(done) == len(rows)
    assert 0 < stopped < len(rows)
    assert capsys.readouterr().out.count("stopped after") == stopped
