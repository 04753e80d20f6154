"""Guards that classify tokens: built from public parts, loaded from a checkpoint of the published structure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.models.qwen3 import Qwen3Config, Qwen3Model

from fastdss import Guard, star_scores
from fastdss.guards.token_head import TokenHeadModel
from fastdss.prefix.engine import reference_logits, tree_logits
from fastdss.prefix.tree import build_tree
from tests.support.builders import _SHAPE, BATCH, CHAT_TEMPLATE, make_tokenizer

from .test_injection import BANK

INNER, LEVELS = 24, {"0": "Safe", "1": "Unsafe", "2": "Controversial"}


def write_checkpoint(folder: Path, **changes) -> dict[str, torch.Tensor]:
    """Backbone, both pairs of heads, config with the vendor's class name and remote code: weights by their names."""
    tokenizer = make_tokenizer()
    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, **_SHAPE).to_dict()
    config |= {
        "architectures": ["Qwen3ForGuardModel"], "auto_map": {"AutoModel": "modeling_vendor.Qwen3ForGuardModel"},
        "guard_inner_size": INNER, "num_risk_level": 3, "num_category": 8, "num_query_risk_level": 3,
        "num_query_category": 9, "response_risk_level_map": LEVELS, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    weights = {f"model.{name}": value for name, value in Qwen3Model(Qwen3Config(**config)).state_dict().items()}
    weights = {name: torch.randn_like(w) * 0.18 if w.ndim == 2 else w for name, w in weights.items()}
    for side, classes in (("", 8), ("query_", 9)):
        weights[f"{side}risk_level_category_pre.weight"] = torch.randn(INNER, _SHAPE["hidden_size"]) * 0.3
        weights[f"{side}risk_level_category_layernorm.weight"] = torch.rand(INNER) + 0.5
        weights[f"{side}risk_level_head.weight"] = torch.randn(3, INNER) * 0.5  # fp32 rounding stays below 1e-6
        weights[f"{side}category_head.weight"] = torch.randn(classes, INNER)
    weights["lm_head.weight"] = torch.randn(len(tokenizer), _SHAPE["hidden_size"])  # as the largest, which ties nothing
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("token-head") / "some-folder"
    folder.mkdir()
    return folder, write_checkpoint(folder)


@pytest.fixture(scope="module")
def guard(checkpoint) -> Guard:
    return Guard.from_pretrained(str(checkpoint[0]))


def test_it_is_found_by_its_architecture_and_reads_the_responses_head(checkpoint, guard) -> None:
    """Against the plain formula on the backbone of transformers with the checkpoint's weights."""
    folder, weights = checkpoint
    assert guard.spec.name == "Qwen3Guard-Stream"
    config = Qwen3Config(**json.loads((folder / "config.json").read_text()))
    body = Qwen3Model(config).eval()
    body.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    (ids,) = guard.encode_prefixes([{"role": "user", "content": "Hello"}], "You can call her.", [7])
    hidden = body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    inner = hidden @ weights["risk_level_category_pre.weight"].T
    norm = nn.functional.rms_norm(inner, (INNER,), weights["risk_level_category_layernorm.weight"], config.rms_norm_eps)
    safe = (norm @ weights["risk_level_head.weight"].T).softmax(-1)[0].item()
    scores = star_scores(guard, {"prompt": ["Hello"], "response": ["You can"]})
    assert scores.scores[0].tolist() == pytest.approx([safe], abs=1e-6)


def test_nothing_is_missing_from_the_checkpoint_and_what_is_left_out_is_known(checkpoint) -> None:
    _, found = TokenHeadModel.from_pretrained(str(checkpoint[0]), output_loading_info=True)
    assert not any(found.values()), found


def test_scores_equal_one_forward_per_prefix_and_the_stream(guard) -> None:
    tree, naive = (star_scores(guard, BATCH, every=2, method=method) for method in ("tree", "per_prefix"))
    for i, (prompt, response) in enumerate(zip(*BATCH.values(), strict=True)):
        assert torch.allclose(tree.scores[i], naive.scores[i], rtol=0, atol=1e-6)
        stream = guard.stream(prompt, every=2)
        streamed = [score for character in response for score in stream.append(character)] + stream.close()
        assert torch.allclose(torch.tensor(streamed), tree.scores[i], rtol=0, atol=1e-6)
    assert torch.cat(tree.scores).std() > 1e-2
    assert len(tree.token_weights(make_tokenizer())) == len(BATCH["prompt"])


def test_fp64_scores_are_exact(checkpoint) -> None:
    guard = Guard.from_pretrained(str(checkpoint[0]), dtype=torch.float64)
    guard.model.set_attn_implementation("fastdss_test_dense")
    response = BATCH["response"][1]
    rows = guard.encode_prefixes([{"role": "user", "content": "Hello"}], response, [3, 20, 41, len(response)])
    tree = guard.scores(tree_logits(guard.model, guard.token_ids, [build_tree(rows)], [0]))
    naive = guard.scores(reference_logits(guard.model, guard.token_ids, rows))
    assert (tree - naive).abs().max().item() <= 1e-12


def test_there_is_no_tail(guard) -> None:
    """Word ends are token ends here, so all prefixes of a response lie on one trunk: the cost is one plain forward."""
    response = "You can call her later today or not at all"
    ends = [i for i, c in enumerate(response) if c == " "] + [len(response)]
    rows = guard.encode_prefixes([{"role": "user", "content": "Hello"}], response, ends)
    tree = build_tree(rows)
    assert tree.num_tokens == len(tree.trunk)
    assert guard.tokenizer.decode(rows[0]).endswith("assistant\nYou")
    assert len({len(row) for row in rows}) == len(ends)


@pytest.mark.parametrize("text", BANK)
def test_hostile_text_yields_no_control_token(guard, text: str) -> None:
    history = [{"role": "user", "content": "Hello"}]
    controls = []
    for response in ("x", f"Well. {text} So."):
        ids = guard.encode_prefixes(history, response, [len(response)])[0]
        controls.append([i for i in ids if guard.encoder.is_control(i)])
    assert controls[0] == controls[1]


def test_the_third_class_may_count_in_part(guard) -> None:
    from dataclasses import replace

    loose = Guard(guard.model, guard.tokenizer, replace(guard.spec, other_weight=0.5))
    logits = torch.tensor([[1.0, 0.0, 2.0]])
    shares = logits.softmax(-1)[0]
    assert loose.scores(logits).item() == pytest.approx((shares[0] + 0.5 * shares[2]).item())


def test_other_classes_are_an_error(tmp_path) -> None:
    write_checkpoint(tmp_path, response_risk_level_map={"0": "Safe", "1": "Unsafe", "2": "Unknown"})
    with pytest.raises(ValueError, match="expected a head over the classes"):
        Guard.from_pretrained(str(tmp_path))


def test_a_template_that_ends_differently_is_an_error(guard) -> None:
    from dataclasses import replace

    odd = CHAT_TEMPLATE.replace("<|end|>\n", "{{ 'long' if message['content'] | length > 20 else 'short' }}<|end|>\n")
    with pytest.raises(ValueError, match="ends differently"):
        Guard(guard.model, guard.tokenizer, replace(guard.spec, template=odd))


def test_saved_and_loaded_again(guard, tmp_path) -> None:
    guard.model.save_pretrained(tmp_path)
    again = TokenHeadModel.from_pretrained(tmp_path)
    for (name, a), (_, b) in zip(guard.model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_an_unknown_model_type_is_no_obstacle(tmp_path) -> None:
    """Remote code may name a type that transformers does not know; the architecture decides."""
    write_checkpoint(tmp_path, model_type="vendors_guard")
    assert Guard.from_pretrained(str(tmp_path)).spec.name == "Qwen3Guard-Stream"
