"""A share of the matrix in the ordinary tests; the table has no silent cell, and the page is the table's."""

import json

import pytest

pytest.importorskip("peft", reason="needs the [train] extra")

from tests.matrix.__main__ import PAGE, TABLE
from tests.matrix.cells import CELLS, run_class
from tests.matrix.images import KINDS
from tests.matrix.page import page
from tests.matrix.ranks import CLASSES, verdicts
from tests.matrix.tiny import text_classes, vision_classes

SHARE = {
    "GPT2LMHeadModel": "right",
    "Gemma3nForCausalLM": "right",
    "DeepseekV3ForCausalLM": "right",
    "BloomForCausalLM": "refused",
    "GraniteMoeHybridForCausalLM": "refused",
    "Idefics3ForConditionalGeneration": "right",
    "LlavaNextForConditionalGeneration": "right",
    "Qwen2VLForConditionalGeneration": "right",
}


@pytest.mark.parametrize(("name", "packed"), SHARE.items())
def test_a_share(name, packed):
    cells = run_class(name)
    words = {cell: verdict.split(":")[0] for cell, verdict in cells.items()}
    images = ["images"] if name in KINDS else []
    assert words == dict.fromkeys([*CELLS, *images], "right") | {"packed": packed}


@pytest.mark.long
def test_a_share_on_two_ranks():
    pytest.importorskip("accelerate", reason="needs the [train] extra")
    assert verdicts() == dict.fromkeys(CLASSES, "right")


def table():
    return [json.loads(line) for line in TABLE.read_text().splitlines()]


def test_no_cell_of_the_table_is_silent():
    _, *rows = table()
    assert {row["class"] for row in rows} >= {*SHARE, *CLASSES}
    known = ("right", "refused: ", "as the class", "not compared: ")
    for row in rows:
        if "not tried" not in row["cells"]:
            assert row["cells"].keys() >= CELLS.keys(), row["class"]
            strange = {cell: verdict for cell, verdict in row["cells"].items() if not verdict.startswith(known)}
            assert not strange, (row["class"], strange)


def test_the_table_knows_every_class_of_its_transformers():
    """And of the older ones, since classes are rarely taken away."""
    import transformers

    versions, *rows = table()
    classes, known = {*text_classes(), *vision_classes()}, {row["class"] for row in rows}
    of_table, here = (tuple(map(int, v.split(".")[:2])) for v in (versions["transformers"], transformers.__version__))
    assert here > of_table or classes <= known, classes - known
    assert here != of_table or classes == known, known - classes


def test_the_page_is_the_tables():
    assert PAGE.read_text() == page(table())
