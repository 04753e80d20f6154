"""Wheel and sdist with the project's addresses in them: ``python -m docs_tools.release``, or ``make dist``.

The sources hold no address. ``PROJECT_URL`` and ``DOCS_URL`` in the environment become the metadata's links, and the
README's relative links and pictures become absolute, since PyPI shows it away from the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")
_PICTURE = re.compile(r'(src|srcset)="(?!https?:)([^"]+)"')


def urls(project: str, docs: str) -> str:
    """The table ``[project.urls]`` of pyproject.toml."""
    named = {
        "Homepage": project,
        "Documentation": docs or f"{project}/tree/main/docs",
        "Source": project,
        "Issues": f"{project}/issues",
        "Changelog": f"{project}/blob/main/CHANGELOG.md",
    }
    return "[project.urls]\n" + "".join(f'{name} = "{url}"\n' for name, url in named.items())


def absolute(readme: str, project: str) -> str:
    """``readme`` with links into the repository at ``project``; pictures are its raw files."""
    readme = _LINK.sub(rf"[\1]({project}/blob/main/\2)", readme)
    return _PICTURE.sub(rf'\1="{project}/raw/main/\2"', readme)


def build(out: Path, project: str = "", docs: str = "") -> None:
    """Build what git tracks, from a copy, into ``out``."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "fastdss"
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, source / name)
        if project:
            settings, readme = source / "pyproject.toml", source / "README.md"
            marked = settings.read_text(encoding="utf-8").replace("\n[tool.", f"\n{urls(project, docs)}\n[tool.", 1)
            settings.write_text(marked, encoding="utf-8")
            readme.write_text(absolute(readme.read_text(encoding="utf-8"), project), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(source)], check=True)


if __name__ == "__main__":
    build(ROOT / "dist", os.environ.get("PROJECT_URL", "").rstrip("/"), os.environ.get("DOCS_URL", "").rstrip("/"))
