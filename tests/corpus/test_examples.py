"""The scoring examples run as they stand, with the guard that ships with fastdss."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the [score] extra")
EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = ["--data", str(EXAMPLES / "conversations.jsonl")]


def main_of(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_score_files(tmp_path, capsys):
    merged = tmp_path / "training.parquet"
    manifest = main_of("score_files")([*DATA, "--out", str(tmp_path / "scores"), "--merged", str(merged)])
    assert manifest["counts"]["scored"] == 24
    assert merged.stat().st_size > 1000
    assert capsys.readouterr().out.count("P(safe)") == 5


@pytest.mark.slow
def test_score_ray(tmp_path):
    ray = pytest.importorskip("ray", reason="needs the [scale] extra")
    try:
        arguments = ["--out", str(tmp_path), "--workers", "2", "--shard-rows", "12"]
        assert main_of("score_ray")([*DATA, *arguments])["counts"]["scored"] == 24
    finally:
        ray.shutdown()
