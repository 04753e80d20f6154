"""The benchmark of approximate scores fits the same probe with any number of processes, and writes what it measured."""

from __future__ import annotations

import json

import bench_probe
import pytest

from fastdss.prefix.engine import Runner
from fastdss.star.probe_file import read_probe

ROWS = ["--guard", "tiny", "--words", "20", "--fit", "30", "--at-most", "0.25", "--confidence", "0.8"]
ROWS += ["--score", "6", "--repeats", "1"]


@pytest.mark.timeout(600)  # three processes are started, one after the other where the cores are busy
def test_two_processes_fit_what_one_does(tmp_path):
    run, found = Runner.run, []
    for count in (1, 2):
        probe, out = tmp_path / f"{count}.safetensors", tmp_path / f"{count}.jsonl"
        row = bench_probe.main([*ROWS, "--processes", str(count), "--probe", str(probe), "--out", str(out)])
        assert json.loads(out.read_text()) == json.loads(json.dumps(row))
        found.append((row, probe.read_bytes()))
    (one, first), (two, second) = found
    assert first == second
    assert Runner.run is run
    certificate = read_probe(first).certificate
    assert certificate.fitted_rows + certificate.sampled_rows == one["fit_rows"] == 30
    told = ("rows", "scores", "approximated", "rows_off", "largest_error", "exact_tokens", "approx_tokens", "audit")
    assert [one[name] for name in told] == [two[name] for name in told]
    assert one["rows"] == 6
    assert one["fewer_tokens"] == pytest.approx(one["exact_tokens"] / one["approx_tokens"])
    assert one["fit_s"] > 0


def test_a_probe_that_is_there_is_not_fitted_again(tmp_path, monkeypatch):
    probe = tmp_path / "probe.safetensors"
    arguments = [*ROWS, "--probe", str(probe)]
    bench_probe.main(arguments)
    monkeypatch.setattr(bench_probe, "read_sample", None)
    before = probe.read_bytes()
    assert bench_probe.main(arguments)["fit_s"] is None
    assert probe.read_bytes() == before
