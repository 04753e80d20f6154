"""Every Python block of the documentation runs, a page's one after the other, with small models for the Hub's."""

import shutil
from pathlib import Path

import pytest

from .blocks import PAGES, ROOT, blocks

pytest.importorskip("datasets", reason="needs fastdss[train]")
pytest.importorskip("trl", reason="needs fastdss[train]")

SMALL = ROOT / "fastdss" / "guards" / "tiny_guard"
WITH_CODE = [page for page in PAGES if any(blocks(page, "python"))]
NOT_RUN = {}  # page -> how many of its blocks say why they are not run


@pytest.fixture
def hub(monkeypatch):
    """Ids of the Hub give the built-in guard's model, which has a chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import fastdss

    for kind in (AutoModelForCausalLM, AutoTokenizer):

        def load(name, *args, known=kind.from_pretrained, **options):
            return known(name if Path(name).exists() else SMALL, *args, **options)

        monkeypatch.setattr(kind, "from_pretrained", load)
    known = fastdss.Guard.from_pretrained

    def load_guard(name, *args, **options):
        return known(name, *args, **options) if Path(name).exists() else fastdss.Guard.tiny()

    monkeypatch.setattr(fastdss.Guard, "from_pretrained", load_guard)


def approximate(names):
    """The page defines a function; here it meets rows. So few show nothing, and then all is computed."""
    from fastdss import Guard
    from training.held_out import poisoned

    rows = {"messages": [poisoned(0, index).messages() for index in range(40)]}
    exact, others = names["score_many"](Guard.tiny(), rows, {"messages": rows["messages"][:3]})
    assert len(exact) == 40
    assert len(others) == 3


AFTER = {"approximate.md": approximate}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_run(page, hub, tmp_path, monkeypatch):
    shutil.copy(ROOT / "examples" / "conversations.jsonl", tmp_path / "chats.jsonl")
    shutil.copytree(SMALL, tmp_path / "run" / "model")  # as if the page's commands had trained it
    monkeypatch.chdir(tmp_path)
    names, ran = {"__name__": "page"}, 0
    for block in blocks(page, "python"):
        if not block.reason:
            exec(compile(block.text, block.place, "exec"), names)
            ran += 1
    assert ran + NOT_RUN.get(page.name, 0) == len(list(blocks(page, "python")))
    if page.name in AFTER:
        AFTER[page.name](names)
