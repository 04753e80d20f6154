"""The reader of JSON that is larger than memory, against ``json.loads`` of the whole, wherever what is read at a time
ends; and the values that Python writes beyond the standard."""

import io
import json

import pytest

from fastdss.corpus import json_files
from fastdss.corpus.rows import DataOptions, read_rows
from fastdss.errors import UserError

VALUES = [
    {"a": "é \\ \" 字 \U0001f600", "b": [1, -2.5e-7, 123456789012345678901234567890], "c": {"d": [[], {}]}},
    {"escaped": "\ud83d\ude00"}, 12.5, 1e300, -17, "text", True, False, None, float("inf"), -float("inf"), [[["deep"]]],
]  # fmt: skip
WRITTEN = {
    "dense": json.dumps(VALUES, separators=(",", ":")),
    "escaped": json.dumps(VALUES, ensure_ascii=True),
    "spread": json.dumps(VALUES, indent=2, ensure_ascii=False),
}


def text_of(content):
    return json_files._Text(io.BufferedReader(io.BytesIO(content.encode("utf-8", "surrogatepass"))))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 40, 1 << 16])
@pytest.mark.parametrize("name", WRITTEN)
def test_values_are_those_of_the_whole_wherever_a_part_ends(monkeypatch, name, size):
    monkeypatch.setattr(json_files, "PEEKED", size)
    content = WRITTEN[name].replace("\ud83d\ude00", "\U0001f600")
    text = text_of(content)
    assert list(text.values()) == json.loads(content)
    text.end()


@pytest.mark.parametrize("size", [1, 9, 1 << 16])
def test_what_was_cut_anywhere_is_never_whole(monkeypatch, size):
    monkeypatch.setattr(json_files, "PEEKED", size)
    content = json.dumps([{"a": [1.5, "b"]}, 12])
    for kept in range(len(content)):
        with pytest.raises(json.JSONDecodeError):
            list(text_of(content[:kept]).values())


def test_a_wrong_sign_is_found_without_reading_on():
    text = text_of('[{"a": 1, b}, ' + '{"c": 2}, ' * 100_000 + "0]")
    with pytest.raises(json.JSONDecodeError):
        list(text.values())
    assert len(text.text) < 2 * json_files.PEEKED


ROW = '{"prompt": "Q",\n "response": "A", "n": %s}'


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "18446744073709551616"])
def test_an_array_may_hold_the_numbers_that_python_writes(tmp_path, number):
    (tmp_path / "rows.json").write_text(f"[{ROW % number},\n{ROW % 1},\n]", encoding="utf-8")  # with a last comma
    assert [row.conversation.turns[1].content for row in read_rows([tmp_path / "rows.json"])] == ["A", "A"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"[{ROW % 1}]\n[{ROW % 1}]", "not JSON after 1 objects of its array [(]expected the end"),
        (f"[{ROW % 1}\n{ROW % 1}]", "not JSON after 1 objects of its array"),
        (f'{{"train": [{ROW % 1}], "train": [{ROW % 2}]}}', "occurs twice"),
        (f'{{"train":\n [{ROW % 1}]}} 1', "neither one JSON object"),
    ],
)
def test_what_follows_an_array_is_not_left_out_in_silence(tmp_path, content, message):
    (tmp_path / "rows.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        list(read_rows([tmp_path / "rows.json"]))


def test_of_several_splits_the_named_one_is_read_wherever_it_stands(tmp_path):
    train, test = ([{"prompt": "Q", "response": answer}] for answer in "AB")
    splits = {"version": {"of": [1]}, "train": train, "test": test, "empty": []}
    (tmp_path / "rows.json").write_text(json.dumps(splits), encoding="utf-8")
    for split, answer in (("train", "A"), ("test", "B")):
        rows = read_rows([tmp_path / "rows.json"], DataOptions(split=split))
        assert [row.conversation.turns[1].content for row in rows] == [answer]
