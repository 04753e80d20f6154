"""No model with a NaN is trained, saved, or reported as good."""

import math
import re

import pytest
import torch

from fastdss.train.run.run import run
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.train_runs import report_of, settings

pytest.importorskip("accelerate", reason="needs the [train] extra")
pytest.importorskip("datasets", reason="needs the [train] extra")
pytest.importorskip("peft", reason="needs the [train] extra")

from fastdss.train.run.stop import NotFinite, StoppingTrainer
from fastdss.train.trainer import DSSTrainer


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_that_are_not_finite_are_never_trained(files, tmp_path, method):
    """One NaN in a model of half precision: an error before the first step."""
    model = tiny_model(vocab_size=320, max_position_embeddings=512).half()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="off by nan"):
        run(settings(files, tmp_path, model=str(tmp_path / "model"), method=method))


@pytest.mark.parametrize("eval_share", [0.25, 0.0])
def test_a_run_that_diverges_stops(files, tmp_path, eval_share):
    """The loss of a NaN model was logged as 0, and the model saved as good."""
    with pytest.raises(NotFinite, match=r"step \d: .* no model was saved\. A learning_rate below 1e\+30 may help"):
        run(settings(files, tmp_path, learning_rate=1e30, max_steps=6, eval_share=eval_share, save_steps=5))
    assert not (tmp_path / "model").exists()
    assert "no model was saved" in report_of(tmp_path)["stopped"]
    page = (tmp_path / "report.html").read_text()
    assert "no model was saved" in page
    assert "nan" not in "".join(re.findall(' d="[^"]*"', page))


def test_weights_ruined_by_the_last_step_are_not_saved(files, tmp_path, monkeypatch):
    """No later loss would show it."""

    def ruin(self, *args, **kwargs):
        loss = DSSTrainer.training_step(self, *args, **kwargs)
        next(p for p in self.model.parameters() if p.requires_grad).grad.fill_(math.nan)
        return loss

    monkeypatch.setattr(StoppingTrainer, "training_step", ruin)
    with pytest.raises(NotFinite, match=r"after step 1: .*lora_A.* has weights that are not finite"):
        run(settings(files, tmp_path, max_steps=1, eval_share=0.0, save_steps=5, learning_rate=0.1, warmup_steps=0.0))
    assert not list(tmp_path.glob("model")) + list(tmp_path.glob("checkpoints/*/*.safetensors"))
