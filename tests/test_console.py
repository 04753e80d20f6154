"""What a terminal, a pipe and a log file see of a command: Ctrl-C, `| head`, a full disk, progress."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdss.console.output import progress_bar, quiet_libraries, silence_import_logs

HERE = Path(__file__).parents[1]
# A parser that Ctrl-C meets while it imports; the second as transformers' lazy imports pass it on.
STRUCK = """
import os, signal, sys
from fastdss import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored

def importing():
    {body}

cli.make_parser = importing
sys.exit(cli.main(["score"]))
"""
PLAIN = "os.kill(os.getpid(), signal.SIGINT)"
CONVERTED = """
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        raise ModuleNotFoundError("Could not import module") from error
"""


def ran(*words, **more):
    return subprocess.run([sys.executable, *words], cwd=HERE, stderr=subprocess.PIPE, text=True, check=False, **more)


@pytest.mark.parametrize("body", [PLAIN, CONVERTED], ids=["plain", "converted"])
def test_ctrl_c_during_imports_is_one_line(body):
    done = ran("-c", STRUCK.format(body=body))
    assert (done.returncode, done.stderr) == (130, "\nfastdss: interrupted\n")


def test_an_error_without_ctrl_c_keeps_its_traceback():
    done = ran("-c", STRUCK.format(body="raise ModuleNotFoundError('torch')"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("words", [["guards"], ["--print-completion", "bash"]])
def test_a_reader_that_went_away_is_no_error(words):
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w") as pipe:
        done = ran("-m", "fastdss", *words, stdout=pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        done = ran("-m", "fastdss", "guards", stdout=full)
    assert (done.returncode, done.stderr) == (1, "fastdss guards: no space left on device\n")


def test_progress_in_a_log_file_is_lines(capfd):
    """No carriage returns and no bars, which an editor shows as one line of thousands of characters."""
    with progress_bar(4, "scoring", "rows") as bar:
        bar.update(4)
    told = capfd.readouterr().err
    assert "\r" not in told
    assert [line.split(" [")[0] for line in told.splitlines()] == ["scoring   0% 0/4 rows", "scoring 100% 4/4 rows"]


def test_what_libraries_print_is_no_part_of_the_result(capsys):
    with quiet_libraries():
        print("a library's remark")
    print(json.dumps({"rows": 4}))
    told = capsys.readouterr()
    assert json.loads(told.out) == {"rows": 4}
    assert told.err == "a library's remark\n"


def test_deepspeed_tells_its_findings_to_nobody_and_its_warnings_to_all():
    silence_import_logs()
    log = logging.getLogger("DeepSpeed")
    for module, level, kept in (
        ("real_accelerator", logging.WARNING, False),
        ("real_accelerator", logging.ERROR, True),
        ("engine", logging.WARNING, True),
    ):
        record = log.makeRecord(log.name, level, f"/x/{module}.py", 1, "told", (), None)
        assert bool(log.filter(record)) is kept
