"""What the package's code never does, whatever it is fed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fastdss"
FILES = sorted(PACKAGE.rglob("*.py"))
_UNPICKLING = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def faults(source: str) -> list[str]:
    """Lines that load pickles, run remote code, or evaluate text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            if {name.split(".")[0] for name in names} & _UNPICKLING:
                found.append(f"{where}: imports a pickling module")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "os.system", "torch.load") or called.endswith(("yaml.load", "subprocess.run")):
            found.append(f"{where}: calls {called}")
        for keyword in node.keywords:
            value = ast.unparse(keyword.value)
            if (keyword.arg, value) in (("trust_remote_code", "True"), ("shell", "True"), ("weights_only", "False")):
                found.append(f"{where}: {keyword.arg}={value}")
        if called == "AutoModelForCausalLM.from_pretrained" and not {"use_safetensors", "gguf_file", None} & {
            keyword.arg for keyword in node.keywords
        }:
            found.append(f"{where}: loads weights that may be pickled")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_never_called(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "torch.load(p)", "eval(text)", "f(trust_remote_code=True)",
     "import yaml\nyaml.load(x)", "AutoModelForCausalLM.from_pretrained(name)"],
)  # fmt: skip
def test_the_lint_finds_what_it_is_for(source: str) -> None:
    assert len(faults(source)) == 1
    assert faults("AutoModelForCausalLM.from_pretrained(name, use_safetensors=True)") == []


def test_no_property_test_escapes_the_profile() -> None:
    """A number of examples or a seed of its own would keep ``--hypothesis-profile=long`` out of a test."""
    tests = Path(__file__).parents[1]
    own = {"max_examples", "derandomize", "deadline"}
    sources = {path: path.read_text(encoding="utf-8") for path in tests.rglob("*.py") if path.name != "profiles.py"}
    found = [
        f"{path.relative_to(tests)}, line {node.lineno}"
        for path, source in sources.items()
        if "from hypothesis import" in source and path.name != "conftest.py"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and own & {keyword.arg for keyword in node.keywords}
    ]
    assert found == []
