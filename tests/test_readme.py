"""The README's Python examples give what they say, and it stays short."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def example(heading: str) -> dict:
    """Names that the first Python block under a heading defines."""
    section = README.split(f"\n## {heading}\n")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    names: dict = {}
    exec(compile(code, f"README.md: {heading}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def policy():
    from fastdss import Guard

    guard = Guard.tiny()  # any causal LM with a chat template will do
    return guard.model, guard.tokenizer


def test_scores(capsys):
    names = example("Score a file, and train on it")
    scores = names["star"].scores[0]
    assert len(scores) == len(names["star"].ends[0]) == 3
    assert scores[0] > 0.5 > scores[-1]
    assert "tensor" in capsys.readouterr().out


def test_it_is_short():
    assert README.count("\n") <= 170


def test_custom_loop(policy):
    model, tokenizer = policy
    star = example("Score a file, and train on it")["star"]
    batch = star.token_weights(tokenizer).pad()
    batch["ref_logprobs"] = torch.full(batch["labels"].shape, -3.0)
    before = model.get_input_embeddings().weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss, ce, kl = example("The loss in a loop")["step"](model, optimizer, batch)
    assert loss == pytest.approx(ce + kl, rel=1e-5)
    assert loss > 0
    assert not torch.equal(before, model.get_input_embeddings().weight)


def test_trainer(policy, tmp_path):
    pytest.importorskip("datasets", reason="needs fastdss[train]")
    from transformers import TrainingArguments

    model, tokenizer = policy
    star = example("Score a file, and train on it")["star"]
    args = TrainingArguments(str(tmp_path), max_steps=2, report_to="none", save_strategy="no", use_cpu=True)
    trainer = example("Train with Trainer")["fine_tune"](model, tokenizer, star, args)
    assert trainer.state.global_step == 2
