"""The scoring examples run as they stand, with the guard that ships with fastdss."""

import pytest

from tests.support.example_scripts import DATA, main_of

pytest.importorskip("pyarrow", reason="needs the [score] extra")


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
