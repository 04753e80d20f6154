"""No text of a row in any error, log, warning or output: a canary stands in every content while every path fails."""

from __future__ import annotations

import json
import logging
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastdss import DSSCollator, Guard, StarScores, prepare_dss_dataset, star_scores
from fastdss.cli import main
from fastdss.corpus.rows import FailedRow, read_rows
from fastdss.corpus.scorer import StarScorer
from fastdss.guards.known import TINY_FOLDER
from fastdss.train.run.run import run
from fastdss.train.run.settings import TrainSettings
from tests.support.builders import TEMPLATE, make_guard, make_spec, make_tokenizer
from tests.support.scored import by_fields

CANARY = "canary7f3a91"
MODEL = str(TINY_FOLDER)  # `train` reads its tokenizer before the data
TEXT = f"Reach {CANARY} on 555 0100. {CANARY}!"
HISTORY = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def guard() -> Guard:
    return make_guard()


@pytest.fixture
def loud(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Everything that was logged, warned or written since the test began."""
    caplog.set_level(logging.DEBUG)
    warned: list[warnings.WarningMessage] = []
    catching = warnings.catch_warnings(record=True)
    warned = catching.__enter__()
    warnings.simplefilter("always")

    def everything() -> str:
        out, err = capfd.readouterr()
        return "\n".join([caplog.text, out, err, *(str(w.message) for w in warned)])

    yield everything
    catching.__exit__(None, None, None)


def fails_without_quoting(action: Callable[[], Any], said: Callable[[], str]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011  (any: what matters is what it says)
        action()
    whole = "".join(traceback.format_exception(caught.value))
    assert CANARY not in str(caught.value)
    assert CANARY not in whole
    assert CANARY not in said()
    return caught.value


RAISING = TEMPLATE + "{{ raise_exception('cannot judge ' + messages[-1]['content']) }}"
ALTERNATING = TEMPLATE + "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
JOINING = TEMPLATE.replace("message['content'] | trim", "('<|' + message['content'] + '|>')")
BATCHES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "surrogate": ({"prompt": [TEXT], "response": [TEXT + "\ud800"]}, {}, "row 0: message 1: lone surrogate"),
    "content is a mapping": (
        {"messages": [[{"role": "user", "content": {CANARY: TEXT}}]]},
        {},
        "row 0: message 0: part 0 is no text",
    ),
    "content is a list": ({"prompt": [TEXT], "response": [[TEXT]]}, {}, "row 0: message 0: expected a mapping"),
    "content is bytes": (
        {"prompt": [TEXT], "response": [TEXT.encode()]},
        {},
        "row 0: response: expected text, got byt",
    ),
    "message is text": ({"messages": [[TEXT]]}, {}, "row 0: message 0: expected a mapping"),
    "messages are text": ({"messages": [TEXT]}, {}, "row 0: messages: expected a non-empty list"),
    "role": ({"messages": [[{"role": CANARY, "content": TEXT}]]}, {}, "row 0: message 0: unknown role"),
    "last turn": ({"messages": [HISTORY]}, {}, "row 0: the last turn must be"),
    "too many characters": (
        {"prompt": [TEXT], "response": [TEXT * 50_000]},
        {},
        "row 0: message 1: 2250000 characters",
    ),
    "too many tokens": ({"prompt": [TEXT], "response": [TEXT * 300]}, {}, "row 0: .* tokens exceed the context"),
    "prompt too long": (
        {"prompt": [TEXT * 300], "response": [TEXT]},
        {"max_tokens": 90},
        "row 0: even its first prefix",
    ),
    "boundary": ({"prompt": [TEXT], "response": [TEXT]}, {"ends": [[9999]]}, r"row 0: ends\[0\]: boundary 9999"),
    "counts": ({"prompt": [TEXT, TEXT], "response": [TEXT]}, {}, "batch: 2 of prompt, 1 of response"),
    "columns": ({CANARY[:3]: [TEXT]}, {}, "expected 'prompt' and 'response'"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_star_scores(guard: Guard, loud: Callable[[], str], name: str) -> None:
    batch, options, message = BATCHES[name]
    error = fails_without_quoting(lambda: star_scores(guard, batch, **options), loud)
    with pytest.raises(type(error), match=message):
        star_scores(guard, batch, **options)


@pytest.mark.parametrize(
    ("template", "batch", "message"),
    [
        (
            RAISING,
            {"prompt": [TEXT], "response": [TEXT]},
            "row 0: the chat template refuses the conversation: Template",
        ),
        (ALTERNATING, {"messages": [[{"role": "assistant", "content": TEXT}]]}, "row 0: .* refuses .*: user first"),
        (JOINING, {"prompt": ["end"], "response": [TEXT]}, "row 0: .* changes the number of control tokens"),
        ("{{ messages[0].content.nothing.there }}", {"prompt": [TEXT], "response": [TEXT]}, "row 0: .* UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", {"prompt": [TEXT], "response": [TEXT]}, "row 0: .* refuses .*: SecurityError"),
    ],
    ids=["raises with the text", "raises", "joins control strings", "misses a variable", "leaves the sandbox"],
)
def test_templates(loud: Callable[[], str], template: str, batch: dict[str, Any], message: str) -> None:
    judge = make_guard(check=False)
    judge.encoder.template = template
    fails_without_quoting(lambda: star_scores(judge, batch), loud)
    with pytest.raises(ValueError, match=message):
        star_scores(judge, batch)


def scores(**change: Any) -> StarScores:
    known: dict[str, Any] = {
        "scores": [[0.5]], "ends": [[len(TEXT)]], "histories": [HISTORY], "responses": [TEXT],
    }  # fmt: skip
    return by_fields(**(known | change))


UPPER = "{% for m in messages %}<|start|>{{ m['content'] | upper }}<|end|>{% endfor %}"
ALIGNED: dict[str, Callable[[], Any]] = {
    "another text": lambda: scores(ends=[[3]]).token_weights(make_tokenizer()),
    "failed": lambda: scores(flags=[frozenset({"failed"})]).token_weights(make_tokenizer()),
    "rewritten": lambda: scores().token_weights(make_tokenizer(), template=UPPER),
    "refused": lambda: scores().token_weights(make_tokenizer(), template=RAISING),
    "dropped": lambda: scores().token_weights(make_tokenizer(), template="{{ messages[0]['content'] }}"),
    "prepared without scores": lambda: prepare_dss_dataset(
        [{"prompt": TEXT, "response": TEXT}], make_tokenizer()
    ),
    "prepared from another text": lambda: prepare_dss_dataset(
        [{"prompt": TEXT, "response": TEXT, "scores": [0.5], "ends": [4]}], make_tokenizer()
    ),
    "prepared with a bad role": lambda: prepare_dss_dataset(
        [{"messages": [{"role": CANARY, "content": TEXT}], "scores": [0.5], "ends": [4]}], make_tokenizer()
    ),
    "collated": lambda: DSSCollator(0)([{"input_ids": [1], "text": TEXT}]),
    "streamed": lambda: make_guard().stream(TEXT).append(TEXT + "\ud800"),
    "streamed too far": lambda: make_guard().stream(TEXT).append(TEXT * 300 + " "),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIGNED)
def test_weights_preparation_and_streams(loud: Callable[[], str], name: str) -> None:
    fails_without_quoting(ALIGNED[name], loud)


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogatepass")
    return str(path)


FILES = {
    "half.jsonl": f'{{"prompt": "{TEXT}", "response": "{TEXT}',
    "list.jsonl": json.dumps([TEXT]),
    "number.jsonl": json.dumps({"prompt": TEXT, "response": 7}),
    "user.jsonl": json.dumps({"messages": HISTORY}),
    "surrogate.jsonl": json.dumps({"prompt": TEXT, "response": TEXT + "\ud800"}),
    "columns.jsonl": json.dumps({"text": TEXT}),
    "rows.parquet": TEXT,
    "rows.csv": f"first,second\n{TEXT},{TEXT}",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", ["score", "train"])
def test_the_command_line(tmp_path: Path, loud: Callable[[], str], name: str, command: str) -> None:
    """Exit code 1, one line, no traceback, no text."""
    data = write(tmp_path / name, FILES[name])
    arguments = {
        "score": ["score", data, "--guard", "tiny", "--out", str(tmp_path / "out"), "--quiet"],
        "train": ["train", "--data", data, "--model", MODEL, "--out", str(tmp_path / "out"), "--cpu"],
    }[command]
    assert main(arguments) == 1
    said = loud()
    assert CANARY not in said
    assert "Traceback" not in said
    assert f"fastdss {command}: " in said


def test_what_is_recorded_of_bad_rows(tmp_path: Path) -> None:
    for name in FILES:
        if name.endswith(".jsonl"):
            (row,) = read_rows([write(tmp_path / name, FILES[name])])
            assert isinstance(row, FailedRow)
            assert CANARY not in row.reason + row.id


def test_what_a_scorer_records(guard: Guard, loud: Callable[[], str]) -> None:
    judge = Guard(guard.model, guard.tokenizer, make_spec(), check=False)
    judge.encoder.template = RAISING
    judge.encoder._expected.clear()
    scorer = StarScorer(judge)
    scorer._loaded = [judge]
    found = scorer({"prompt": [TEXT], "response": [TEXT]})
    assert found["star"] == [[]]
    assert "refuses the conversation" in found["error"][0]
    assert CANARY not in found["error"][0] + loud()


def test_a_run_refuses_data_without_naming_it(tmp_path: Path, loud: Callable[[], str]) -> None:
    data = write(tmp_path / "rows.jsonl", FILES["number.jsonl"])
    settings = TrainSettings(data=data, model=MODEL, out=str(tmp_path / "out"), cpu=True)
    error = fails_without_quoting(lambda: run(settings), loud)
    assert "line 1" in str(error)


def test_the_canary_would_be_seen(loud: Callable[[], str]) -> None:
    """The check itself: an error that quotes, a log line and a print are each found."""

    def quoting() -> None:
        raise ValueError(f"bad text {TEXT}")

    with pytest.raises(AssertionError):
        fails_without_quoting(quoting, loud)
    logging.getLogger("fastdss").debug("row %s", TEXT)
    assert CANARY in loud()
    print(TEXT)
    assert CANARY in loud()
