"""What a user gets by installing: light imports, the right files in the wheel, and no clash with other packages."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastdss

ROOT = Path(__file__).resolve().parents[1]


HEAVY = "print([m for m in ('triton', 'transformers', 'torch') if m in sys.modules])"


def run_python(code: str, cwd: Path | None = None) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_brings_neither_triton_nor_transformers_nor_torch():
    assert run_python(f"import fastdss, sys; {HEAVY}") == "[]"


def test_import_costs_little_beyond_torch():
    code = "import torch, time; t = time.perf_counter(); import fastdss; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.1


def test_losses_need_neither_triton_nor_transformers():
    code = f"from fastdss import weighted_ce, dss_loss, token_logprobs; import sys; {HEAVY}"
    assert run_python(code) == "['torch']"


def test_public_names_resolve():
    assert set(fastdss.__all__) <= set(dir(fastdss))
    for name in fastdss.__all__:
        assert getattr(fastdss, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = fastdss.no_such_name


@pytest.mark.parametrize("launch", ["import kernels", "import fastdss, kernels", "import fastdss.kernels, kernels"])
def test_our_kernels_folder_never_shadows_the_package_of_that_name(tmp_path, launch):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("theirs = True\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); {launch}; print(kernels.theirs)"
    assert run_python(code, cwd=ROOT) == "True"


def test_triton_kernels_import_as_fastdss_kernels():
    path = run_python("import importlib.util as u; print(u.find_spec('fastdss.kernels.row_pass').origin)", cwd=ROOT)
    assert Path(path) == ROOT / "kernels" / "row_pass.py"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the sources, so that no build folder is left in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_wheel_is_pure_and_holds_what_it_should(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.endswith("-py3-none-any.whl")
    assert {
        "fastdss/py.typed",
        "fastdss/loss/functional.py",
        "fastdss/kernels/row_pass.py",
        "fastdss/demo/__init__.py",
    } <= names
    pages = {f"fastdss/score_report/{name}" for name in ("page.css", "page.js", "row.js", "view.js")}
    assert pages <= names
    assert {"fastdss/guards/tiny_guard/model.safetensors", "fastdss/guards/tiny_guard/chat_template.jinja"} <= names
    assert "fastdss/kernels/__init__.py" not in names  # only the source tree needs the stand-in
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fastdss", next(top for top in tops if top.endswith(".dist-info"))}


def test_every_module_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {f"fastdss/{p.relative_to(ROOT / 'fastdss')}" for p in (ROOT / "fastdss").rglob("*.py")}
    sources |= {f"fastdss/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py")}
    assert sources - {"fastdss/kernels/__init__.py"} <= names


def test_wheel_works_unpacked_elsewhere(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fastdss, torch, importlib.util as u; "
        "assert fastdss.__file__.startswith(sys.path[0]), fastdss.__file__; "
        "assert u.find_spec('fastdss.kernels.row_pass').origin.startswith(sys.path[0]); "
        "print(fastdss.weighted_ce(torch.ones(2, 3), torch.ones(5, 3), torch.tensor([1, 2])).item())"
    )
    assert abs(float(run_python(code, cwd=tmp_path)) - 1.6094379) < 1e-5  # log 5: all logits are equal
