"""The shortcut that the tiny guard's training takes: its last layer is computed at the verdicts only."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training.train_tiny_guard import last_layer_at


def test_last_layer_at_chosen_places_is_the_whole_layer_there() -> None:
    """Rows with unlike counts of places, one with none; grouped heads; values and gradients in float64."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").model.double()
    layer = model.layers[0]
    x = torch.randn(4, 9, 16, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(9).expand(4, 9) // torch.tensor([1, 2, 1, 3])[:, None]
    turns = model.rotary_emb(x, positions)
    mask = (torch.rand(4, 1, 9, 9) < 0.6).tril() | torch.eye(9, dtype=torch.bool)
    places = torch.tensor([[0, 8], [0, 3], [0, 5], [1, 8], [3, 0], [3, 7]])
    seeds = torch.randn(len(places), 16, dtype=torch.float64)

    whole = layer(x, attention_mask=mask, position_embeddings=turns)[places[:, 0], places[:, 1]]
    chosen = last_layer_at(layer, x, places, mask, turns)
    leaves = [x, *layer.parameters()]
    torch.testing.assert_close(chosen, whole)
    for got, expected in zip(
        torch.autograd.grad(chosen, leaves, seeds), torch.autograd.grad(whole, leaves, seeds), strict=True
    ):
        torch.testing.assert_close(got, expected)
