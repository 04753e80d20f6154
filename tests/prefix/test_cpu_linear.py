"""Another GEMM library, the same scores, and the model left as it was."""

from __future__ import annotations

import pytest
import torch

import fastdss.prefix.cpu_linear
from fastdss import star_scores
from fastdss.prefix.cpu_linear import WORTH_PACKING, cpu_gemm, eligible_layers, preferred_gemm
from tests.support.builders import ARCHITECTURES, BATCH, make_guard

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_do_not_depend_on_the_backend(architecture):
    guard = make_guard(architecture)
    naive = star_scores(guard, BATCH, method="per_prefix")
    for backend in ("default", "onednn", "auto"):
        scores = star_scores(guard, BATCH, gemm=backend)
        for a, b in zip(scores.scores, naive.scores, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_layers_run_on_the_backend_and_are_restored():
    model = make_guard().model.model
    layers = eligible_layers(model)
    assert len(layers) == 3 * 7
    rows = torch.randn(1, 5, layers[0].in_features)
    with torch.inference_mode(), cpu_gemm(model, "onednn") as used:
        assert used == "onednn"
        assert not eligible_layers(model)
        inside = layers[0](rows)
    assert eligible_layers(model) == layers
    assert torch.allclose(inside, layers[0](rows), atol=1e-5)
    with pytest.raises(RuntimeError, match="stop"), cpu_gemm(model, "onednn"):
        raise RuntimeError("stop")
    assert eligible_layers(model) == layers


@pytest.mark.parametrize(("amd", "used"), [(True, "onednn"), (False, "default")])
def test_auto_goes_by_processor_and_size_of_the_call(monkeypatch, amd, used):
    monkeypatch.setattr(fastdss.prefix.cpu_linear, "_by_amd", lambda: amd)
    model = make_guard().model
    assert preferred_gemm(model) == used
    for tokens, expected in ((WORTH_PACKING - 1, "default"), (WORTH_PACKING, used), (WORTH_PACKING - 1, "default")):
        with cpu_gemm(model, "auto", tokens=tokens) as backend:
            assert backend == expected


def test_other_precisions_stay_with_the_default():
    model = make_guard().model.to(torch.bfloat16)
    with cpu_gemm(model, "auto", tokens=WORTH_PACKING) as backend:
        assert backend == "default"
    with pytest.raises(ValueError, match="gemm='onednn' needs"), cpu_gemm(model, "onednn"):
        pass
    with pytest.raises(ValueError, match="gemm: expected one of"), cpu_gemm(model, "mkl"):
        pass
