"""``fastdss --print-completion``: the Tab key in a real shell where there is one, and what every script knows."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from fastdss.cli import main
from fastdss.console.completion import SHELLS


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script of each shell, as the command prints it."""
    folder = tmp_path_factory.mktemp("completion")
    from contextlib import redirect_stdout

    for shell in SHELLS:
        with (folder / shell).open("w") as out, redirect_stdout(out), pytest.raises(SystemExit) as ended:
            main(["--print-completion", shell])
        assert ended.value.code == 0
    return folder


def pressed(script, words, folder):
    """What bash offers where the Tab key is pressed behind the last of ``words``."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash on the path")
    quoted = " ".join(f"'{word}'" for word in words)
    lines = [
        f"source {script}",
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}",
        f"_shtab_fastdss fastdss '{words[-1]}' '{words[-2]}'",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_tab_key_in_bash(scripts, tmp_path):
    (tmp_path / "chats.jsonl").touch()
    script = scripts / "bash"
    assert pressed(script, ["fastdss", "sc"], tmp_path) == {"score"}
    assert pressed(script, ["fastdss", "train", "--kl", ""], tmp_path) == {"k1", "k2", "k3", "reverse", "forward"}
    assert "--guard" in pressed(script, ["fastdss", "score", "--gu"], tmp_path)
    assert pressed(script, ["fastdss", "score", "cha"], tmp_path) == {"chats.jsonl"}
    assert pressed(script, ["fastdss", "train", "--model", "cha"], tmp_path) == {"chats.jsonl"}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_knows_every_command_by_its_line_of_help(scripts, shell):
    script = (scripts / shell).read_text()
    for command in ("check", "score", "report", "merge", "guards", "train", "demo"):
        assert command in script
    assert "--print-completion" in script or "-l print-completion" in script
    assert "reverse" in script  # a choice of one option
    assert "goes on where it stopped" not in script  # the long description
