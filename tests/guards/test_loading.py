"""What a folder holds becomes the guard that its config names, whole: no weight is left to chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from fastdss import Guard, GuardSpec, star_scores
from fastdss.prefix.attention import NAME, using_prefix_attention
from fastdss.upstream.transformers import attention_of, attentions_of
from tests.matrix.tiny import tiny_model
from tests.support.builders import BATCH, CHAT_TEMPLATE, make_model, make_spec, make_tokenizer

from .test_token_head import write_checkpoint

CLASSES = GuardSpec("classes", template=CHAT_TEMPLATE, head="sequence", safe="0", unsafe="1")


def save(model, folder: Path) -> str:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_head_that_the_checkpoint_lacks_is_an_error(tmp_path: Path) -> None:
    """transformers makes it up at random and logs a warning: two loads of one folder gave two scores."""
    folder = save(make_model("llama", len(make_tokenizer())), tmp_path)
    with pytest.raises(ValueError, match=r"got none for 1, score\.weight among them, which would be random"):
        Guard.from_pretrained(folder, spec=CLASSES)


def test_a_layer_that_the_checkpoint_lacks_is_an_error(tmp_path: Path) -> None:
    folder = save(make_model("llama", len(make_tokenizer())), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"got none for 3, model\.layers\.1\.mlp\.down_proj\.weight among them"):
        Guard.from_pretrained(folder, spec=make_spec())


def test_a_token_head_that_the_checkpoint_lacks_is_an_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if not name.startswith("risk_level_head")},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"got none for 1, risk_level_head\.weight among them"):
        Guard.from_pretrained(str(tmp_path))


def test_whole_checkpoints_load_as_they_were_saved(tmp_path: Path) -> None:
    """Tied heads are in no checkpoint, and are no parameters that it lacks."""
    for architecture in ("gemma3_text", "llama"):
        model = make_model(architecture, len(make_tokenizer()))
        guard = Guard.from_pretrained(save(model, tmp_path / architecture), spec=make_spec())
        expected = star_scores(Guard(model, make_tokenizer(), make_spec()), BATCH)
        assert all(map(torch.equal, star_scores(guard, BATCH).scores, expected.scores))
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "llama", num_labels=2)
    assert Guard.from_pretrained(save(classifier, tmp_path / "classes"), spec=CLASSES).token_ids == [0, 1]


@pytest.mark.parametrize("name", ["Mistral3ForConditionalGeneration", "Llama4ForConditionalGeneration"])
def test_a_guard_of_text_and_images_is_given_text(name: str, tmp_path: Path) -> None:
    """As Shieldstral and Llama Guard 4 are published; transformers knows Mistral 3 as no causal LM."""
    tokenizer = make_tokenizer()
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, "initializer_range": 0.18}
    model = tiny_model(name, torch.float32, text_config=text)
    guard = Guard.from_pretrained(save(model, tmp_path), spec=replace(make_spec(), name="of text and images"))
    tree, apart = (star_scores(guard, BATCH, every=2, method=method) for method in ("tree", "per_prefix"))
    for one, other in zip(tree.scores, apart.scores, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)
    (ids,) = guard.encode([[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "No."}]])
    alone = (
        model.language_model if name.startswith("Llama4") else model
    )  # whose own forward fails in transformers 5.24.0
    logits = alone(input_ids=torch.tensor([ids])).logits[0, -1, guard.token_ids]
    assert guard.scores(logits[None]).item() == pytest.approx(
        star_scores(guard, {"prompt": ["Hello"], "response": ["No."]}).scores[0][-1].item(), abs=1e-6
    )


def test_each_part_keeps_the_attention_that_it_had() -> None:
    """The tree is taken between two forwards of the model itself: one name for all parts would change the second, and
    Gemma 4's part for sound knows no other than its own."""
    model = tiny_model("Mistral3ForConditionalGeneration", torch.float32)
    model.set_attn_implementation({"": "sdpa", "vision_config": "sdpa", "text_config": "eager"})
    language = model.model.language_model
    assert (attention_of(model.config), attention_of(language.config)) == ("sdpa", "eager")
    with using_prefix_attention(model):
        assert attention_of(language.config) == NAME
    assert (attention_of(model.config), attention_of(language.config)) == ("sdpa", "eager")
    assert attention_of(model.model.vision_tower.config) == "sdpa"
    sound = tiny_model("Gemma4ForConditionalGeneration", torch.float32)
    before = attentions_of(sound.config)
    with using_prefix_attention(sound):
        assert attentions_of(sound.config) != before
    assert attentions_of(sound.config) == before
