"""The streaming example runs as it stands, on a tiny random policy and the guard that ships with fastdss."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from fastdss import Guard, star_scores
from tests.support.builders import make_model, make_tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "score_stream.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example_score_stream", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    """A random policy that writes tokens of all kinds, bytes of unfinished characters too."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = make_tokenizer()
    make_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(example, policy: str, threshold: str, *options: str):
    size = ["--tokens", "60", "--every", "1", "--temperature", "1"]
    return example.main(["--model", policy, "--prompt", "Hello", "--threshold", threshold, *size, *options])


@pytest.mark.parametrize("unit", ["word", "token"])
def test_the_finished_text_has_the_batchs_scores(example, policy, capsys, unit) -> None:
    stream = run(example, policy, "0", "--unit", unit)
    batch = star_scores(Guard.tiny(), {"prompt": ["Hello"], "response": [stream.text]}, every=1, unit=unit)
    assert stream.ends == batch.ends[0]
    assert torch.allclose(torch.tensor(stream.scores), batch.scores[0], rtol=0, atol=1e-6)
    assert "finished; " in capsys.readouterr().out
    assert len(stream.ends) > 2


def test_generation_stops_at_the_first_low_score(example, policy, capsys) -> None:
    whole, stream = (run(example, policy, threshold) for threshold in ("0", "1"))
    assert "stopped; " in capsys.readouterr().out
    assert whole.text.startswith(stream.text)
    assert len(stream.text) < len(whole.text)
    assert stream.scores[-1] < 1
