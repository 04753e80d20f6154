"""The files that people have: every layout, encoding and compression gives the same rows, a bad line stays one."""

import gzip
import json
import lzma

import pytest

from fastdss.corpus.csv_files import encoding_of
from fastdss.corpus.rows import DataOptions, FailedRow, Row, read_rows
from fastdss.corpus.run import score_dataset
from fastdss.corpus.splits import split_of
from fastdss.corpus.store import joined
from fastdss.errors import UserError
from tests.corpus.fakes import FakeScorer
from tests.journeys.data import OASST, RECORDS, SAFE, write

pa = pytest.importorskip("pyarrow", reason="needs the [score] extra")
pd = pytest.importorskip("pandas")
datasets = pytest.importorskip("datasets", reason="needs the [score] extra")
zstandard = pytest.importorskip("zstandard", reason="needs the [score] extra")

ROWS = [{"id": f"r{i}", "prompt": f"Q{i} café", "response": f"Answer {i}, “yes” é."} for i in range(3)]
FRAME = pd.DataFrame(ROWS)
CHATS = [
    {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
    }
    for row in ROWS
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = pa.Table.from_pylist(ROWS)


def parquet(table=TABLE):
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def arrow(kind):
    sink = pa.BufferOutputStream()
    with {"file": pa.ipc.new_file, "stream": pa.ipc.new_stream}[kind](sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return sink.getvalue().to_pybytes()


FILES = {
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "UPPER.JSONL": LINES,
    "commas.jsonl": "".join(json.dumps(row) + ",\n" for row in ROWS),
    "array.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "array.jsonl": json.dumps(ROWS, indent=1),
    "line_per_row.json": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "line_per_row.jsonl": "[" + ",\n".join(map(json.dumps, ROWS)) + "]",
    "columns.json": FRAME.to_json(),
    "lists.json": json.dumps(FRAME.to_dict(orient="list")),
    "lists_pretty.json": json.dumps(FRAME.to_dict(orient="list"), indent=1),
    "split.json": FRAME.to_json(orient="split"),
    "index.json": FRAME.to_json(orient="index"),
    "table.json": FRAME.to_json(orient="table"),
    "examples.json": json.dumps({"examples": ROWS}),
    "data.json": json.dumps({"version": 1, "data": ROWS}, indent=2),
    "chats.json": json.dumps({"messages": [chat["messages"] for chat in CHATS]}),
    "mark.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "utf16.json": json.dumps(ROWS, indent=1).encode("utf-16"),
    "a.jsonl.gz": gzip.compress(LINES.encode()),
    "a.jsonl.xz": lzma.compress(LINES.encode()),
    "a.jsonl.zst": zstandard.compress(LINES.encode()),
    "a.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "comma.csv": FRAME.to_csv(index=False),
    "semicolon.csv": FRAME.to_csv(index=False, sep=";"),
    "tabs.tsv": FRAME.to_csv(index=False, sep="\t"),
    "tabs.csv": FRAME.to_csv(index=False, sep="\t"),
    "bars.csv": FRAME.to_csv(index=False, sep="|"),
    "windows.csv": FRAME.to_csv(index=False).encode("cp1252"),
    "utf16.csv": FRAME.to_csv(index=False).encode("utf-16"),
    "packed.csv.gz": gzip.compress(FRAME.to_csv(index=False).encode()),
    "index.csv": FRAME.to_csv(),
    "json_cells.csv": pd.DataFrame([{"messages": json.dumps(c["messages"])} for c in CHATS]).to_csv(index=False),
    "python_cells.csv": pd.DataFrame(CHATS).to_csv(index=False),
    "rows.parquet": parquet(),
    "chats.parquet": parquet(pa.Table.from_pylist(CHATS)),
    "packed.parquet.gz": gzip.compress(parquet()),
    "file.arrow": arrow("file"),
    "stream.arrow": arrow("stream"),
    "rows.feather": arrow("file"),
}


def texts(rows):
    return [tuple(turn.content for turn in row.conversation.turns) for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize("name", FILES)
def test_every_file_gives_the_same_rows(tmp_path, name):
    content = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = list(read_rows([tmp_path / name]))
    assert texts(found) == [(row["prompt"], row["response"]) for row in ROWS]
    assert list(read_rows([f"file://{tmp_path / name}"])) == found  # by fsspec
    if "chats" not in name and "cells" not in name:
        assert [row.id for row in found] == ["r0", "r1", "r2"]


@pytest.mark.parametrize(
    "source",
    [
        FRAME,
        pd.DataFrame(CHATS),
        TABLE,
        TABLE.to_batches()[0],
        datasets.Dataset.from_list(ROWS),
        datasets.Dataset.from_list(ROWS).with_format("numpy"),
        ROWS,
    ],
    ids=["frame", "frame of lists", "table", "batch", "dataset", "dataset as numpy", "list"],
)
def test_what_lies_in_memory_gives_the_same_rows(source):
    assert texts(read_rows([source])) == [(row["prompt"], row["response"]) for row in ROWS]


def test_a_dictionary_of_splits_says_which_there_are():
    with pytest.raises(ValueError, match="holds the splits train, test: give one of them"):
        list(read_rows([datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")})]))


def test_missing_values_of_a_frame_are_none():
    frame = pd.DataFrame([ROWS[0], {**ROWS[1], "id": None, "system": "Be kind."}])
    first, second = read_rows([frame])
    assert (first.id, second.id) == ("r0", "1")
    assert [turn.role for turn in first.conversation.turns] == ["user", "assistant"]
    assert second.conversation.turns[0].content == "Be kind."


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        ([json.dumps(ROWS[0]), "{broken", "", json.dumps(ROWS[1])], 2),
        (["[", json.dumps(ROWS[0]) + ",", "{broken},", json.dumps(ROWS[1]), "]"], 3),
        (["", json.dumps(ROWS[0]), json.dumps(ROWS[1]), '{"prompt": 1}'], 4),
    ],
)
def test_one_bad_line_is_one_failed_row_with_the_line_of_the_file(tmp_path, lines, bad):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    found = list(read_rows([path]))
    assert len(texts(found)) == 2
    (failed,) = [row for row in found if isinstance(row, FailedRow)]
    assert failed.line == bad
    assert failed.reason.startswith(f"line {bad}: ")


def test_a_line_of_csv_is_that_of_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,response\n"two\nlines",x\na,b,c\nd,e\n')
    assert [row.line for row in read_rows([path])] == [2, 4, 5]


def test_a_damaged_array_ends_with_how_far_it_was_read(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, indent=1)[:-20])
    with pytest.raises(ValueError, match="not JSON after 2 objects of its array"):
        list(read_rows([path]))


def test_an_object_of_an_array_that_names_a_column_twice_is_an_error(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n {"prompt": "a",\n  "response": "b", "response": "c"}\n]')
    with pytest.raises(ValueError, match="a name occurs twice"):
        list(read_rows([path]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "is a Git LFS pointer"),
        ("x.jsonl.gz", b"no gzip", "its compression is damaged"),
        ("x.jsonl.zst", b"no zstandard at all", "its compression is damaged"),
        ("x.txt", b"text", "expected one of .jsonl"),
        ("x.arrow", b"no arrow", "not to be read as Arrow"),
    ],
)
def test_what_is_no_data_says_so(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows([tmp_path / name]))


def test_splits_of_folders_and_files(tmp_path):
    for name in (
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
        "data/test-00000-of-00001.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, ROWS[:1])
    (tmp_path / "README.md").write_text("words")
    with pytest.raises(ValueError, match="holds the splits test, train: name one by --split"):
        list(read_rows([tmp_path]))
    assert len(list(read_rows([tmp_path], DataOptions(split="train")))) == 2
    with pytest.raises(ValueError, match="holds test, train, got 'dev'"):
        list(read_rows([tmp_path], DataOptions(split="dev")))
    both = tmp_path / "both.json"
    both.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    with pytest.raises(ValueError, match="holds the splits train, test: name one by --split"):
        list(read_rows([both]))
    assert len(list(read_rows([both], DataOptions(split="test")))) == 1
    # one line of JSON Lines is one record, whatever it holds: here a conversation in a form that nobody knows
    alone = tmp_path / "alone.jsonl"
    write(alone, [{"rounds": [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]}])
    (row,) = read_rows([alone])
    assert isinstance(row, FailedRow)
    assert "it has rounds" in row.reason


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("_delta_log/00000000000000000000.json", "{}", "a table of Delta Lake, whose files have deleted rows too"),
        (".hoodie/hoodie.properties", "", "a table of Hudi"),
        ("metadata/00000-a.metadata.json", "{}", "a table of Iceberg"),
        ("README.md", "---\nconfigs:\n- config_name: en\n- config_name: fr\n---\n", "the configurations en, fr: give"),
        ("part-1.orc", "ORC", r"holds part-1\.orc, which may hold rows and cannot be read: convert or unpack"),
        ("a.tar", "", r"holds a\.tar, which may hold rows"),
        ("more/b.jsonl.zip", "PK", r"holds b\.jsonl\.zip, which may hold rows"),
    ],
)
def test_a_folder_is_read_whole_or_says_what_of_it_is_not(tmp_path, name, content, message):
    """Half of it was trained in silence, or rows that its own log calls deleted."""
    write(tmp_path / "part-0.jsonl", ROWS)
    for held in ("README.md", "LICENSE.txt", "requirements.txt", "dataset.yaml", "train.metadata.json.md"):
        (tmp_path / held).write_text("---\nconfigs:\n- config_name: en\n---\n")
    assert len(list(read_rows([tmp_path]))) == 3
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_rows([tmp_path]))


def test_a_saved_dictionary_of_one_split_needs_no_name(tmp_path):
    datasets.DatasetDict({"train_sft": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "one")
    assert len(list(read_rows([tmp_path / "one"]))) == 3


def test_a_damaged_saved_dataset_is_named_and_a_foreign_state_file_is_no_such_thing(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert len(list(read_rows([tmp_path / "saved"]))) == 3
    (tmp_path / "saved" / "state.json").write_text('{"_data_files": []}')
    with pytest.raises(ValueError, match="saved: not to be read as a saved"):
        list(read_rows([tmp_path / "saved"]))
    (tmp_path / "plain").mkdir()
    write(tmp_path / "plain" / "a.jsonl", ROWS)
    (tmp_path / "plain" / "state.json").write_text("{}")
    kinds = [type(row) for row in read_rows([tmp_path / "plain"])]
    assert kinds == [Row, Row, Row, FailedRow]  # the foreign file is a record without a conversation, said aloud


@pytest.mark.parametrize(
    ("path", "split"),
    [("train.jsonl", "train"), ("data/valid/0.parquet", "validation"), ("my_test_set.csv", "test"),
     ("latest.jsonl", "train"), ("contest.jsonl", "train"), ("dev-0001.parquet", "validation")],
)  # fmt: skip
def test_what_a_name_says_of_its_split(tmp_path, path, split):
    assert split_of(tmp_path.__class__(path)) == split


@pytest.mark.parametrize(
    ("sample", "encoding"),
    [
        (b"plain", "utf-8-sig"),
        ("é".encode(), "utf-8-sig"),
        ("café".encode("cp1252"), "cp1252"),
        ("naïve “quotes”".encode("cp1252"), "cp1252"),
        (b"damaged \xff byte", "utf-8-sig"),
        ("é".encode() + b" \xe9", "utf-8-sig"),
        ("a".encode("utf-16"), "utf-16"),
        ("abc".encode("utf-16-le"), "utf-16-le"),
    ],
)
def test_encodings_are_found_by_their_bytes(sample, encoding):
    assert encoding_of(sample) == encoding


def test_trees_of_messages_become_conversations(tmp_path):
    more = [{**row, "message_tree_id": "other", "message_id": f"o{row['message_id']}",
             "parent_id": row["parent_id"] and f"o{row['parent_id']}"} for row in OASST]  # fmt: skip
    rows = list(read_rows([write(tmp_path / "oasst.jsonl", [*OASST, *more])]))
    assert [row.id for row in rows] == ["b1", "b2", "a2", "ob1", "ob2", "oa2"]
    assert [row.judged for row in rows] == [(1, 3), (3,), (1,)] * 2


@pytest.mark.parametrize("name", RECORDS)
def test_every_format_from_every_kind_of_table(tmp_path, name):
    record, _, _, trained = RECORDS[name]
    (expected,) = read_rows([[record]])
    pd.DataFrame([record]).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.json").write_text(json.dumps([record], indent=1))
    sources = [tmp_path / "a.json"]
    if name != "openai_parts":  # no column of Arrow holds both text and lists
        sources.append(datasets.Dataset.from_list([record]))
    sources.append(tmp_path / "a.csv")
    for source in sources:
        (row,) = read_rows([source])
        assert isinstance(row, Row), row.reason
        assert row.conversation.turns == expected.conversation.turns
        assert row.judged == tuple(trained)


def test_the_last_turn_alone_on_request():
    (row,) = read_rows([[RECORDS["messages"][0]]], DataOptions(turns="last"))
    assert row.judged == (3,)
    assert row.conversation.turns[1].content == SAFE


def test_a_tree_whose_rows_stand_apart_is_no_conversation(tmp_path):
    """Without its question an answer was trained as if the conversation began with it."""
    shuffled = [OASST[1], {**OASST[0], "message_id": "z", "message_tree_id": "z"}, OASST[0], OASST[2]]
    rows = list(read_rows([write(tmp_path / "oasst.jsonl", shuffled)]))
    apart = "it answers a message that is not beside it: the rows of a tree must stand together"
    alone = "it has no turn of the assistant"
    found = [row.reason if isinstance(row, FailedRow) else texts([row]) for row in rows]
    assert found == [f"line 1: {apart}", f"line 2: {alone}", [("Hi", "Hello.")]]


def test_trees_are_told_apart_by_their_parents_where_no_column_names_them(tmp_path):
    unnamed = [{key: value for key, value in row.items() if key != "message_tree_id"} for row in OASST]
    more = [{**row, "message_id": f"o{row['message_id']}", "parent_id": row["parent_id"] and f"o{row['parent_id']}"}
            for row in unnamed]  # fmt: skip
    named = texts(read_rows([write(tmp_path / "named.jsonl", OASST)]))
    assert texts(read_rows([write(tmp_path / "unnamed.jsonl", [*unnamed, *more])])) == named * 2


def test_what_was_deleted_from_a_tree_is_not_trained(tmp_path):
    rows = list(
        read_rows([write(tmp_path / "oasst.jsonl", [{**row, "deleted": row["message_id"] == "a1"} for row in OASST])])
    )
    assert texts(rows) == [("Hi", "Hello.")]
    (gone,) = [row for row in rows if isinstance(row, FailedRow)]
    assert gone.left_out
    assert gone.reason == "line 1: every answer of the assistant is marked as not to be trained, or empty"


def test_a_part_that_is_asked_of_what_has_no_parts_is_refused(tmp_path):
    """Such a name was ignored, and everything was read as if it were that part."""
    path = write(tmp_path / "chats.jsonl", ROWS)
    for source in (path, ROWS, tmp_path):
        with pytest.raises(UserError, match="config: only a data set of the Hub has configurations, got 'en'"):
            list(read_rows([source], DataOptions(config="en")))
    with pytest.raises(UserError, match="split: data in memory holds no splits, got 'test': leave it out"):
        list(read_rows([ROWS], DataOptions(split="test")))
    held_out = datasets.Dataset.from_list(ROWS, split=datasets.Split.TEST)
    held_out.save_to_disk(tmp_path / "chats")
    for source in (held_out, tmp_path / "chats"):
        assert len(list(read_rows([source], DataOptions(split="test")))) == 3
        with pytest.raises(UserError, match=r"split: .*got 'validation': leave it out"):
            list(read_rows([source], DataOptions(split="validation")))


def test_what_was_scored_of_a_part_is_read_again_by_that_part(tmp_path):
    """The parts of a saved DatasetDict lie in folders of their names; in memory a part is what it is."""
    parts = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("train_sft", "test_sft")})
    parts.save_to_disk(tmp_path / "parts")
    scores = tmp_path / "scores"
    score_dataset(tmp_path / "parts", scores, FakeScorer(), data=DataOptions(split="train_sft"))
    assert len(list(joined(scores))) == 3
    assert len(list(joined(scores, [parts["train_sft"]]))) == 3


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.json", "chats.csv", "chats.parquet", "one.json"])
def test_a_split_that_a_file_does_not_have_is_refused(tmp_path, name):
    """All of its rows would be taken for that split. A file of the split's name is one, and so is any for "train"."""
    rows = [{"prompt": "a", "response": f"b {i}"} for i in range(1 if name == "one.json" else 3)]
    for folder in ("here", "test"):
        path = tmp_path / folder / name
        path.parent.mkdir()
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow.parquet").write_table(
                pytest.importorskip("pyarrow").Table.from_pylist(rows), path
            )
        elif name.endswith("csv"):
            path.write_text("prompt,response\n" + "".join(f"a,b {i}\n" for i in range(3)))
        elif name == "chats.jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            path.write_text(json.dumps(rows if name == "chats.json" else rows[0]))
    with pytest.raises(ValueError, match=r"split: .* holds no splits, and its path names .*; got 'validation'"):
        list(read_rows([tmp_path / "here" / name], DataOptions(split="validation")))
    assert len(list(read_rows([tmp_path / "here" / name], DataOptions(split="train")))) == len(rows)
    assert len(list(read_rows([tmp_path / "test" / name], DataOptions(split="test")))) == len(rows)
