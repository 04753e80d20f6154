"""What is published: one version everywhere, addresses where they were given, nothing else changed."""

import re
import tomllib
from pathlib import Path

import yaml

import fastdss
from docs_tools.release import absolute, urls

from .blocks import ROOT

URL = "https://example.org/me/fastdss"


def test_one_version_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+", fastdss.__version__)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == fastdss.__version__
    assert re.search(rf"^## {re.escape(fastdss.__version__)} \(", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_sources_name_no_address_and_the_build_can():
    settings = (ROOT / "pyproject.toml").read_text()
    assert "urls" not in tomllib.loads(settings)["project"]
    filled = tomllib.loads(settings.replace("\n[tool.", f"\n{urls(URL, '')}\n[tool.", 1))
    assert filled["project"]["urls"]["Issues"] == f"{URL}/issues"
    assert filled["project"]["urls"]["Documentation"] == f"{URL}/tree/main/docs"
    assert {name: part for name, part in filled["project"].items() if name != "urls"} == tomllib.loads(settings)[
        "project"
    ]


def test_the_readme_has_no_relative_link_left():
    readme = absolute((ROOT / "README.md").read_text(), URL)
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(targets) > 20
    assert all(target.startswith("https://") for target in targets)
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', readme)
    assert len(pictures) == 6  # each for wide screens and for narrow ones
    assert all(picture.startswith(f"{URL}/raw/main/docs/assets/") for picture in pictures)


def test_every_relative_link_of_the_readme_exists():
    for target in re.findall(r'(?:\]\(|src="|srcset=")(?!https?:|#)([^)#"]+)', (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_issue_templates_are_forms():
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = [path for path in sorted(folder.glob("*.yml")) if path.name != "config.yml"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        asked = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(asked) == len(set(asked)) > 1


def test_every_extra_is_explained():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    table = Path(ROOT / "docs" / "start.md").read_text()
    assert {extra for extra in extras if f"| `{extra}` |" not in table} == {"flash"}
