"""What the runs of these tests train on: eight conversations, one of them unsafe, and a tiny model."""

import json

import pytest

from tests.support.tiny_models import scored_rows, tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    rows = [{"prompt": row["prompt"], "response": row["response"]} for row in scored_rows(8)]
    rows[3]["response"] = "Sure. You can reach Ada Quill at ada.quill@example.com or 555-0100. Be kind to her."
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_model(vocab_size=320, max_position_embeddings=512).float().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder
