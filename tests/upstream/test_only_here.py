"""What leans on other libraries' private names stands in fastdss/upstream, and every name there has a canary."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UPSTREAM = ROOT / "fastdss" / "upstream"
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("fastdss", "kernels")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
INSIDE = {name: tree for name, tree in SOURCES.items() if name.startswith("fastdss/upstream/")}
OUTSIDE = {name: tree for name, tree in SOURCES.items() if name not in INSIDE}
PRIVATE = re.compile(r"_[a-z]\w*")
NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_field_defaults", "_make"}
# Which modules of these libraries their documentation shows.
DOCUMENTED = {
    "transformers": ("", "utils", "modeling_outputs"),
    "trl": ("",),
    "peft": ("",),
    "accelerate": ("", "utils"),
    "deepspeed": ("", "zero", "utils"),
    "datasets": ("",),
    "torch": ("", "distributed", "nn", "nn.attention", "nn.functional", "utils.data"),
}
# Attributes without an underscore that no page documents; fastdss asks for them through fastdss/upstream alone.
UNDOCUMENTED = {
    *("lora_A", "lora_B", "lora_variant", "lora_dropout", "lora_bias", "lora_magnitude_vector", "get_delta_weight"),
    *("base_layer", "original_module", "token_adapter", "active_adapters", "disable_adapters", "modules_to_save"),
    *("ds_id", "ds_tensor", "quant_state", "hf_quantizer", "tp_size"),
    *("label_smoother", "model_accepts_loss_kwargs", "current_gradient_accumulation_steps"),
    *("dataloader_config", "fsdp_plugin", "parallelism_config", "deepspeed_plugin"),
    *("aux_loss_enabled", "attn_temperature_tuning", "layer_idx"),
}


def defined(trees: dict[str, ast.Module]) -> set[str]:
    """Private names that these files bring into the world themselves."""
    found = {"_"}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") else set()
    return {name for name in found if PRIVATE.fullmatch(name)} | NAMED_TUPLES


def leaning(tree: ast.Module, own: set[str], theirs: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of whatever a file takes from another library that this one does not promise.

    own: private names that are ours. theirs: names that are never ours, whoever defines them.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, name) for name in undocumented(node))
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]  # for getattr, hasattr, a look into __dict__
        elif isinstance(node, ast.ClassDef):  # a method that overrides one of theirs
            names = [each.name for each in node.body if isinstance(each, ast.FunctionDef) and each.name in theirs]
        for name in names:
            if name in theirs or (PRIVATE.fullmatch(name) and name not in own and not name.startswith("_dss_")):
                yield node.lineno, name


def undocumented(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.level:
        return
    modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    for module in modules:
        library, _, within = module.partition(".")
        known = DOCUMENTED.get(library)
        if known is not None and within not in known:
            yield module
        if library != "__future__" and any(part.startswith("_") for part in module.split(".")):
            yield module
    if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("fastdss"):
        yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_"))


def taken_upstream() -> set[str]:
    """Private names that fastdss/upstream asks others for, in attributes, strings and methods that it overrides."""
    found = set()
    for tree in INSIDE.values():
        own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in ast.walk(tree):
            names = [getattr(node, "attr", ""), getattr(node, "value", ""), getattr(node, "name", "")]
            found |= {name for name in names if isinstance(name, str) and PRIVATE.fullmatch(name)} - own
    return found


OWN = defined(OUTSIDE)
THEIRS = taken_upstream() | UNDOCUMENTED


def test_private_names_of_others_stand_in_upstream_alone() -> None:
    found = [f"{file}:{line}: {name}" for file, tree in OUTSIDE.items() for line, name in leaning(tree, OWN, THEIRS)]
    assert found == [], "move it to fastdss/upstream, with why it is needed and a canary in tests/upstream"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("model.config._attn_implementation", "_attn_implementation"),
        ("getattr(model, '_hf_hook')", "_hf_hook"),
        ("x._never_seen_before", "_never_seen_before"),
        ("from transformers.masking_utils import create_causal_mask", "transformers.masking_utils"),
        ("from torch._dynamo import config", "torch._dynamo"),
        ("from trl import _private", "trl._private"),
        ("import peft.tuners.lora", "peft.tuners.lora"),
        ("layer.lora_A", "lora_A"),
        ("hasattr(weight, 'ds_id')", "ds_id"),
        ("class T:\n    def _prepare_inputs(self): pass", "_prepare_inputs"),
    ],
)
def test_the_search_finds(source: str, name: str) -> None:
    assert name in {found for _, found in leaning(ast.parse(source), OWN, THEIRS)}


def test_the_search_lets_pass_what_is_ours_or_promised() -> None:
    fine = (
        "from transformers import Trainer\nfrom torch.nn.attention import sdpa_kernel\nimport torch.distributed as d\n"
    )
    fine += "self._kept\ncall._replace(a=1)\nmodel.__dict__['_dss_config']\nmodel.get_base_model()\nx.base_model"
    assert list(leaning(ast.parse(fine), OWN | {"_kept"}, THEIRS)) == []
    assert {"_attn_implementation", "_prepare_dataset", "_old_forward", "_orig_mod"} <= THEIRS


@pytest.mark.parametrize("module", sorted(path.stem for path in UPSTREAM.glob("*.py") if path.stem != "__init__"))
def test_every_name_has_a_reason_and_a_canary(module: str) -> None:
    tree = INSIDE[f"fastdss/upstream/{module}.py"]
    tests = Path(__file__).with_name(f"test_{module}.py")
    kinds = ("attr", "id", "name")  # asked for, called, overridden
    tried = {getattr(node, kind, None) for node in ast.walk(ast.parse(tests.read_text())) for kind in kinds}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name} does not say why it is needed"
            assert node.name in tried, f"{tests.name} does not ask {module}.{node.name} for anything"
    assert "gone(" in tests.read_text(), f"{tests.name}: a failure does not say what changed"
