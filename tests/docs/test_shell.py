"""Every shell command of the documentation, typed as it stands: a page's one after the other, in a folder of its own.

Models of the Hub are small random ones in folders of the same names, which every command takes before it asks the Hub.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import PAGES, ROOT, lines, words_of

pytest.importorskip("pyarrow", reason="needs the [score] extra")
pytest.importorskip("accelerate", reason="needs the [train] extra")

NOT_RUN = {  # what a command begins with -> why it is not run here
    "make demo": "tests/newcomer.sh types it in a fresh clone",
    "make test": "that is what runs this",
    "make test-ci": "that is what runs this",
    "make check": "a part of make test",
    "make unit": "a part of make test",
    "make install-dev": "make test begins with it",
    "make docs": "CI runs it, and test_site",
    "make pictures": "test_pictures makes them and compares",
    "make mutation": "hours",
    "make oldest": "fetches gigabytes",
    "make newest": "fetches gigabytes",
    "make dist": "fetches tools; docs/releasing.md says when",
    "pip install": "needs a network; make test begins with it",
    ".venv/bin/pre-commit": "changes the repository's hooks",
    "python -m training.smollm2_guard": "trains a model for 9 minutes on two cores",
    "python benchmarks/bench_probe.py": "measures with the guard that the line before trains",
    "swift": "another package, not installed here",
}
# SmolLM2 is trained once, on the first page; on the others a small model stands in for it.
IN_PLACE = {
    "--model smollm2": "--model my/model",
    "examples/fsdp2.py": "examples/fsdp2.py --model my/model --steps 2",
    "examples/hf_trainer.py": "examples/hf_trainer.py --model my/model --steps 2",
}
HUB_GUARDS = ("meta-llama/Llama-Guard-3-1B", "meta-llama/Llama-Guard-3-8B", "ibm-granite/granite-guardian-3.1-2b")
HUB_MODELS = ("my/model", "HuggingFaceTB/SmolLM2-135M-Instruct")
DATA = ROOT / "examples" / "conversations.jsonl"


def why_not(line: str) -> str:
    line = " ".join(words_of(line))
    return next((reason for start, reason in NOT_RUN.items() if re.match(rf"{re.escape(start)}(\s|$)", line)), "")


SHOWN = {page: [line for _, line in lines(page)] for page in PAGES}
RUN = {page: run for page, shown in SHOWN.items() if (run := [line for line in shown if not why_not(line)])}
HOME = (".local/share/bash-completion/completions", ".zfunc", ".config/fish/completions")  # folders that shells have


def test_every_reason_is_one_of_a_command_that_is_shown():
    reasons = {why_not(line) for shown in SHOWN.values() for line in shown} - {""}
    assert reasons == set(NOT_RUN.values())
    assert len(RUN) > 5


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """What the commands find: data under every name that a page uses, models under theirs, and the programs."""
    from fastdss import StarScorer, score_dataset
    from fastdss.corpus.merge import merge
    from tests.guards.test_specs import ALL, make_tokenizer
    from tests.support.builders import make_model
    from tests.support.tiny_models import tiny_model, tiny_tokenizer

    root = tmp_path_factory.mktemp("machine")
    for name in HUB_GUARDS:
        _, template, architecture = ALL.get(name) or ALL["ibm-granite/granite-guardian-3.1-8b"]
        tokenizer = make_tokenizer(template)
        make_model(architecture, len(tokenizer)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    for name in HUB_MODELS:
        tiny_model(vocab_size=320, max_position_embeddings=1024).float().save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    for name in ("chats.jsonl", "data.jsonl"):
        shutil.copy(DATA, root / name)
    rows = [json.loads(line) | {"id": f"more-{n}"} for n, line in enumerate(DATA.read_text().splitlines()[:6])]
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), root / "more.parquet")
    score_dataset(str(DATA), str(root / "before"), StarScorer("tiny"))
    for name in ("training.parquet", "scored.jsonl"):
        merge(str(root / "before"), str(root / name))
    shutil.rmtree(root / "before")
    shutil.copytree(ROOT / "examples", root / "examples")
    for name in ("benchmarks", "training"):
        (root / name).symlink_to(ROOT / name)
    return root


@functools.cache
def programs(folder: Path) -> Path:
    """The environment's own programs; ``python -m`` for those that it has not as files."""
    folder.mkdir()
    modules = {
        "python": "",
        "fastdss": "-m fastdss",
        "torchrun": "-m torch.distributed.run",
        "accelerate": "-m accelerate.commands.accelerate_cli",
    }
    for name, module in modules.items():
        if not (Path(sys.executable).parent / name).exists():
            (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
            (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_page_as_typed(page, machine, tmp_path_factory):
    if any("--engine ray" in line for line in RUN[page]) and importlib.util.find_spec("ray") is None:
        pytest.skip("needs the [scale] extra")
    folder = tmp_path_factory.mktemp("page") / "here"
    shutil.copytree(machine, folder, symlinks=True)
    for name in HOME:
        (folder / name).mkdir(parents=True)
    path = f"{programs(machine / 'programs')}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "BROWSER": "true"}
    env |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hub"), "HOME": str(folder)}
    for line in RUN[page]:
        for real, small in IN_PLACE.items() if page.name != "README.md" else ():
            line = re.sub(rf"{re.escape(real)}(?!\S)", small, line)
        done = subprocess.run(line, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if line.startswith("fastdss"):  # what other libraries log while they are imported is not for its user
            assert not re.search(r"torchao|_pytree", done.stderr), f"{line}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr, f"{line}\n{done.stderr[-3000:]}"
