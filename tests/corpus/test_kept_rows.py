"""What a reader could lose or change without a word: rows, columns, fields, files."""

import csv
import json

import pytest

from fastdss.chat.formats import read_record
from fastdss.corpus.engines import Shard
from fastdss.corpus.merge import merge
from fastdss.corpus.plan import make_plan, missing_shards
from fastdss.corpus.rows import FailedRow, read_rows
from fastdss.corpus.run import score_dataset
from fastdss.corpus.sample import Sample
from fastdss.corpus.tables import read_memory, records_of
from fastdss.errors import UserError
from fastdss.star.promise import Promise
from fastdss.star.scoring import read_batch

from .fakes import FakeScorer, conversations, write_jsonl

pa = pytest.importorskip("pyarrow", reason="needs the [score] extra")
pd = pytest.importorskip("pandas")
datasets = pytest.importorskip("datasets", reason="needs the [score] extra")
zstandard = pytest.importorskip("zstandard", reason="needs the [score] extra")

COLUMNS = {"prompt": [f"Q{i}" for i in range(3000)], "response": [f"Answer {i}" for i in range(3000)]}


def in_frames(content):
    """Many small frames of zstd, as a log that is flushed often has them: a read returns little at a time."""
    pack = zstandard.ZstdCompressor().compress
    return b"".join(pack(content[at : at + 999]) for at in range(0, len(content), 999))


@pytest.mark.parametrize("name", ["utf16.json", "frames.json.zst"])
def test_a_file_whose_beginning_comes_in_pieces_has_the_same_layout(tmp_path, name):
    text = json.dumps(COLUMNS)
    (tmp_path / name).write_bytes(in_frames(text.encode()) if name.endswith("zst") else text.encode("utf-16"))
    answers = [row.conversation.turns[1].content for row in read_rows([tmp_path / name])]
    assert answers == COLUMNS["response"]


def test_columns_of_one_known_name_in_any_case_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("Prompt,Response,Response\na,b,c\n", encoding="utf-8")
    with pytest.raises(UserError, match="2 columns are named 'Response': rename"):
        list(read_rows([tmp_path / "rows.csv"]))


def test_columns_without_a_name_are_no_such_thing(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,response,,\na,b,,\n", encoding="utf-8")
    assert [row.conversation.turns[1].content for row in read_rows([tmp_path / "rows.csv"])] == ["b"]


def test_two_files_of_csv_are_read_at_a_time(tmp_path):
    csv.field_size_limit(1 << 17)  # Python's own
    long = "x" * (1 << 18)
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(f"prompt,response\nQ,{long}\nQ,{long}\n", encoding="utf-8")
    one, other = read_rows([tmp_path / "a.csv"]), read_rows([tmp_path / "b.csv"])
    rows = [next(one), next(other), *one, *other]
    assert [len(row.conversation.turns[1].content) for row in rows] == [len(long)] * 4


def test_names_of_columns_may_be_numbers():
    (row,) = read_rows([[{0: "more", "prompt": "Q", "response": "A"}]])
    assert row.others == {"0": "more"}


CALLS = [
    {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"properties": arguments}}}],
    }
    for arguments in ({"city": "Oslo"}, {"place": "Rome"})
]
TABLE = pa.Table.from_pylist(CALLS)
READERS = {
    "batch of a data set": lambda: datasets.Dataset(TABLE)[:],
    "rows of a data set": lambda: list(datasets.Dataset(TABLE)),
    "frame of a table": lambda: TABLE.to_pandas(),
    "frame of Arrow's types": lambda: TABLE.to_pandas(types_mapper=pd.ArrowDtype),
    "frame of lists": lambda: pd.DataFrame(CALLS),
    "stream": lambda: datasets.Dataset(TABLE).to_iterable_dataset(),
    "data set": lambda: datasets.Dataset(TABLE),
}


@pytest.mark.parametrize("name", READERS)
def test_a_field_that_only_another_row_has_is_no_argument(name):
    given = READERS[name]()
    rows = [row.conversation for row in read_rows([records_of(given) if isinstance(given, dict) else given])]
    assert [chat.turns[1].calls[0].arguments for chat in rows] == [{"city": "Oslo"}, {"place": "Rome"}]
    assert [list(chat.tools) for chat in rows] == [row["tools"] for row in CALLS]


def test_a_null_that_python_wrote_is_kept_everywhere_and_on_the_way_to_other_processes():
    call = {"function": {"name": "weather", "arguments": {"city": None}}}
    record = {**CALLS[0], "messages": [CALLS[0]["messages"][0], {"role": "assistant", "tool_calls": [call]}]}
    batch = {name: [value] for name, value in record.items()}
    for given in (pd.DataFrame([record]), [record], records_of(batch)):
        (row,) = read_rows([given])
        assert row.conversation.turns[1].calls[0].arguments == {"city": None}
    (judged,) = read_batch(batch, "last")
    assert judged.conversation == row.conversation
    (packed,) = Shard.unpack(Shard("x", [row]).pack()).rows
    assert (list(packed.conversation.tools), packed.conversation.digest) == (record["tools"], row.content_hash)


# Arguments that are not alike: datasets keeps them in Arrow as JSON, where a null is a value,
# beside fields that it fills.
MIXED = [
    {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": arguments}}]},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", **more}}],
    }
    for arguments, more in (({"n": 3, "unit": None}, {}), ({"n": "x"}, {"parameters": {"properties": {"n": [{}, 1]}}}))
]


def mixed():
    return datasets.Dataset.from_list(MIXED, on_mixed_types="use_json")


MIXED_READERS = {
    "data set": mixed,
    "stream": lambda: mixed().to_iterable_dataset(),
    "table": lambda: mixed().with_format("arrow")[:],
    "batch": lambda: mixed()[:],
    "rows": lambda: list(mixed()),
}


@pytest.mark.parametrize("name", MIXED_READERS)
def test_values_that_are_json_in_arrow_are_read(name):
    given = MIXED_READERS[name]()
    rows = [row.conversation for row in read_rows([records_of(given) if isinstance(given, dict) else given])]
    assert [chat.turns[1].calls[0].arguments for chat in rows] == [{"n": 3, "unit": None}, {"n": "x"}]
    assert [list(chat.tools) for chat in rows] == [row["tools"] for row in MIXED]


def test_the_batches_of_a_map_hold_what_its_data_set_holds():
    for make, calls in ((lambda: datasets.Dataset(TABLE), CALLS), (mixed, MIXED)):
        seen = []
        make().map(lambda batch, seen=seen: seen.extend(records_of(batch)), batched=True)
        answers = [row.conversation.turns[1].calls[0].arguments for row in read_rows([seen])]
        assert answers == [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in calls]
    seen = []
    xlam = [{"query": "Q", "answers": [{"name": "f", "arguments": {name: 1}}]} for name in "ab"]
    datasets.Dataset.from_list(xlam).map(lambda batch: seen.extend(records_of(batch)), batched=True)
    assert seen == xlam


def test_what_arrow_filled_beside_its_json_is_nothing():
    schema = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"default": null}']))
    function = pa.StructArray.from_arrays(
        [["f"], pa.nulls(1, pa.string()), schema], ["name", "description", "parameters"]
    )
    (found,) = read_memory(pa.table({"tools": pa.ListArray.from_arrays([0, 1], function)}))
    assert found.record["tools"] == [{"name": "f", "parameters": {"default": None}}]


def test_damaged_json_in_arrow_fails_its_row():
    kind = pa.json_()
    texts = [json.dumps([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]), '[{"role"']
    good, bad = read_rows([pa.table({"messages": pa.ExtensionArray.from_storage(kind, pa.array(texts))})])
    assert [turn.content for turn in good.conversation.turns] == ["Q", "A"]
    assert bad.reason.startswith("row 1: JSON in it is damaged: ")


def message(name, parent, **more):
    role = "assistant" if name % 2 else "prompter"
    return {"message_id": str(name), "parent_id": parent, "text": f"text {name}", "role": role, **more}


@pytest.mark.parametrize(
    ("rows", "read", "reasons"),
    [
        ([message(0, None), message(1, "0"), message(3, "2"), message(4, "3")], 1, 2 * ["beside it"]),
        ([message(0, None), message(1, "0"), message(2, "3"), message(3, "2")], 1, 2 * ["beside it"]),
        ([message(0, None), message(1, "0"), message(1, "1")], 1, ["message_id"]),
        ([message(0, float("nan")), message(1, "0")], 1, []),
    ],
    ids=["what follows a message without its question", "a circle", "a repeated name", "a frame's missing parent"],
)
def test_every_message_of_a_tree_is_in_a_conversation_or_said_not_to_be(rows, read, reasons):
    found = list(read_rows([[row | {"message_tree_id": "t"} for row in rows]]))
    failed = [row.reason for row in found if isinstance(row, FailedRow)]
    assert len(found) - len(failed) == read
    assert len(failed) == len(reasons)
    assert all(map(str.__contains__, failed, reasons))


def test_a_tree_beyond_the_limit_says_so(monkeypatch):
    monkeypatch.setattr("fastdss.chat.oasst.LARGEST_TREE", 2)
    rows = [message(i, str(i - 1) if i else None, message_tree_id="t") for i in range(5)]
    found = list(read_rows([rows]))
    assert ["its tree has more" in row.reason for row in found if isinstance(row, FailedRow)] == [True] * 3
    assert [len(row.conversation.turns) for row in found if not isinstance(row, FailedRow)] == [2]


def test_what_a_calls_turn_says_beside_its_calls_is_kept():
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}', "reasoning_content": "Because."}
    chat = read_record({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, call]})
    assert "Because." in "".join(turn.answer.text for turn in chat.conversation.turns)


def test_the_address_of_a_file_may_say_more_than_its_path(tmp_path):
    import fsspec

    with fsspec.open("memory://rows.jsonl?download=true", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in conversations(2))
    assert len(list(read_rows(["memory://rows.jsonl?download=true"]))) == 2


def test_the_id_of_a_bad_line_may_be_that_of_a_row(tmp_path):
    lines = [json.dumps({"id": i, "prompt": "Q", "response": "A"}) for i in (1, 2, 3)]
    (tmp_path / "rows.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]), encoding="utf-8")
    manifest = score_dataset(tmp_path / "rows.jsonl", tmp_path / "out", FakeScorer())
    assert (manifest["counts"]["scored"], manifest["counts"]["failed"]) == (3, 1)


def test_an_input_that_loses_its_last_rows_meanwhile_is_refused():
    rows = list(read_rows([conversations(40)]))
    plan = make_plan(rows, 10)
    with pytest.raises(UserError, match="changed while it was read: rows from 30 on"):
        list(missing_shards(rows[:30], plan, 10, {2, 3}))


def test_a_row_that_occurs_twice_is_an_error_of_its_id_in_a_sample_too():
    rows = list(read_rows([conversations(3) * 2]))
    with pytest.raises(UserError, match="the same id"):
        make_plan(Sample(Promise(0.1), 0).watching(rows), None)


def test_only_its_own_temporary_files_are_removed(tmp_path):
    for name in (".merged.parquet.0123456789ab.tmp", ".manifest.json.0123456789ab.tmp", ".editor.tmp"):
        (tmp_path / name).touch()
    score_dataset([dict(row) for row in conversations(3)], tmp_path, FakeScorer())
    left = sorted(path.name for path in tmp_path.glob(".*.tmp"))
    assert left == [".editor.tmp", ".merged.parquet.0123456789ab.tmp"]


def test_scores_that_lie_within_the_inputs_folder_are_no_rows(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", conversations(20))
    first, second = (score_dataset(tmp_path, tmp_path / "scores", FakeScorer()) for _ in range(2))
    assert second["counts"] == first["counts"]
    assert second["shards"] == first["shards"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    "values",
    [["\ud83d", "x"], [{}, {}], [{"a": {}}, {"a": {}}], [[{}], []]],
    ids=["half a sign", "no fields", "no inner fields", "a list of none"],
)
def test_what_stands_beside_a_conversation_goes_through_merge_whatever_it_is(tmp_path, suffix, values):
    rows = [row | {"more": value} for row, value in zip(conversations(2), values, strict=True)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    score_dataset(tmp_path / "rows.jsonl", tmp_path / "scores", FakeScorer())
    assert merge(tmp_path / "scores", tmp_path / f"merged.{suffix}").rows == 2
    merged = [row.others["more"] for row in read_rows([tmp_path / f"merged.{suffix}"])]
    assert (list(map(json.loads, merged)) if suffix == "parquet" else merged) == values


def test_a_column_of_fractions_and_of_numbers_beyond_them_says_what_helps(tmp_path):
    one, other = conversations(2)
    write_jsonl(tmp_path / "rows.jsonl", [one | {"n": 0.5}, other | {"n": 2**60 + 1}])
    score_dataset(tmp_path / "rows.jsonl", tmp_path / "scores", FakeScorer())
    with pytest.raises(UserError, match=r"write \.jsonl"):
        merge(tmp_path / "scores", tmp_path / "merged.parquet")
    assert not (tmp_path / "merged.parquet").exists()
