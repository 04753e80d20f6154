"""Files as other programs leave them: cut, misnamed, in other layouts and encodings. Their rows are known by hand."""

import bz2
import gzip
import json
import lzma

import pytest

from fastdss.corpus.check import check
from fastdss.corpus.csv_files import encoding_of
from fastdss.corpus.rows import FailedRow, Row, read_rows

pa = pytest.importorskip("pyarrow", reason="needs the [score] extra")
pd = pytest.importorskip("pandas")
zstandard = pytest.importorskip("zstandard", reason="needs the [score] extra")

ONE, TWO = {"prompt": "Hi", "response": "Hello, friend."}, {"prompt": "Who?", "response": "Ada, from next door."}
BOTH = [("Hi", "Hello, friend."), ("Who?", "Ada, from next door.")]
LINES = json.dumps(ONE) + "\n" + json.dumps(TWO) + "\n"


def chat(row):
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows([path]))


def texts(rows):
    return [tuple(turn.content for turn in row.conversation.turns) for row in rows if isinstance(row, Row)]


def parquet(table):
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def far(content):
    """Compressed as by ``zstd --long=28``."""
    how = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=how).compress(content)


# As Claude's export of one's account has them.
EXPORTED = [
    {
        "uuid": "c1",
        "name": "A chat",
        "chat_messages": [
            {
                "uuid": f"m{number}",
                "sender": "human" if turn["role"] == "user" else "assistant",
                "text": turn["content"],
                "content": [{"type": "text", "text": turn["content"], "start_timestamp": "2026-01-01T00:00:00Z"}],
                "attachments": [],
            }
            for number, turn in enumerate(chat(row))
        ],
    }
    for row in (ONE, TWO)
]
MAP = pa.list_(pa.map_(pa.string(), pa.string()))
AS_COLUMNS = [{name: [turn[name] for turn in chat(row)] for name in ("role", "content")} for row in (ONE, TWO)]
FILES = {
    "objects_of_several_lines.json": f"[\n {json.dumps(ONE)},\n {{\n  "
    + json.dumps(TWO)[1:].replace(", ", ",\n  ", 1)
    + "\n]",
    "two_on_a_line.json": f"[{json.dumps(ONE)}, {json.dumps(TWO)}\n]",
    "three_lines.json": f"[\n{json.dumps(ONE)}, {json.dumps(TWO)}\n]\n",
    "lists_of_messages.jsonl": json.dumps(chat(ONE)) + "\n" + json.dumps(chat(TWO)) + "\n",
    "lists_of_messages.json": json.dumps([chat(ONE), chat(TWO)], indent=1),
    "by_id.json": json.dumps({"a": ONE, "b": {**TWO, "note": "x"}}, indent=1),
    "columns_of_messages.jsonl": "".join(json.dumps({"messages": chats}) + "\n" for chats in AS_COLUMNS),
    "utf16_without_mark.jsonl": LINES.encode("utf-16-le"),
    "utf16_without_mark.json": json.dumps([ONE, TWO], indent=1).encode("utf-16-be"),
    "named_as_if_plain.jsonl": gzip.compress(LINES.encode()),
    "named_otherwise.jsonl.gz": zstandard.compress(LINES.encode()),
    "members.jsonl.gz": b"".join(gzip.compress(line.encode()) for line in LINES.splitlines(keepends=True)),
    "frames.jsonl.zst": b"".join(zstandard.compress(line.encode()) for line in LINES.splitlines(keepends=True)),
    "put_together.jsonl": b"".join(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n" for row in (ONE, TWO)),
    "far.jsonl.zst": far(LINES.encode()),
    "packed.parquet": gzip.compress(parquet(pa.Table.from_pylist([ONE, TWO]))),
    "columns.parquet": parquet(pa.table({"messages": pa.array(AS_COLUMNS)})),
    "maps.parquet": parquet(
        pa.table({"messages": pa.array([[list(turn.items()) for turn in chat(row)] for row in (ONE, TWO)], MAP)})
    ),
    "capitals.csv": 'Prompt,Response\nHi,"Hello, friend."\nWho?,"Ada, from next door."\n',
    "blanks.csv": 'prompt, response\nHi, "Hello, friend."\nWho?, "Ada, from next door."\n',
    "conversations.json": json.dumps(EXPORTED),
    "excel.csv": "sep=;\r\nprompt;response\r\nHi;Hello, friend.\r\nWho?;Ada, from next door.\r\n",
    "returns.csv": "prompt;response\rHi;Hello, friend.\rWho?;Ada, from next door.\r",
}


@pytest.mark.parametrize("name", FILES)
def test_the_rows_are_those_that_a_person_reads(tmp_path, name):
    assert texts(read(tmp_path / name, FILES[name])) == BOTH


@pytest.mark.parametrize("one", ['{"data": ["Hi", "Hello, friend."]}\n', json.dumps(chat(ONE)) + "\n",
                                 json.dumps({"conversations": AS_COLUMNS[0]}) + "\n"])  # fmt: skip
def test_a_file_of_one_line_is_one_conversation(tmp_path, one):
    assert texts(read(tmp_path / "one.jsonl", one)) == BOTH[:1]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstandard.compress])
@pytest.mark.parametrize("rows", [30, 3000])
def test_half_of_a_compressed_file_is_never_a_whole_one(tmp_path, pack, rows):
    """zstandard's reader ended where the bytes did: of a broken download the first rows were trained in silence."""
    suffix = {"gzip": "gz", "lzma": "xz", "bz2": "bz2"}.get(pack.__module__, "zst")
    whole = pack("".join(json.dumps({**ONE, "id": str(i * i)}) + "\n" for i in range(rows)).encode())
    assert len(read(tmp_path / f"whole.jsonl.{suffix}", whole)) == rows
    for size in (len(whole) // 2, len(whole) - 1, 20):
        with pytest.raises(ValueError, match="its compression is damaged"):
            read(tmp_path / f"cut.jsonl.{suffix}", whole[:size])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl.gz", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("x.csv.zst", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("x.parquet", b"/annex/objects/MD5E-s5--0.parquet\n", "git annex get"),
        ("x.jsonl", b"PK\x03\x04rest", "is a ZIP archive: unpack it"),
        ("x.json", b"\n<!doctype html><html>", "a page of HTML or XML"),
        ("x.csv", b"PAR1rest", r"rename it to \.parquet"),
        ("x.jsonl.gz", LINES.encode(), r"rename it without \.gz"),
        ("x.zip", b"", "unpack it"),
        ("x.xlsx", b"", "save it as CSV UTF-8"),
        ("x.jsonl", json.dumps(ONE, indent=1).encode() * 2, "jq -c"),
    ],
)
def test_what_is_something_else_says_what_helps(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name, content)


WESTERN = [
    "L’œuvre créée à Noël coûte 5 € « tout compris » – déjà réglée.", "„Schöne Grüße“ – größer als früher.",
    "¡Está aquí! El niño tiene 2º premio, 3ª vez y 20°, 5 m² y £3.", "Não há opções, à noite são três ações.",
    "Åka på ön är så här: œ, ÆØÅ i versaler.", "Il perché è più là, l´eau, col·legi, ½ Ñandú.",
]  # fmt: skip
FOREIGN = {
    "cp1251": "Столица Франции — Париж.", "gbk": "我很好谢谢你", "big5": "我很好謝謝你", "shift_jis": "私は元気です",
    "euc_kr": "저는 잘 지냅니다", "cp1253": "Είμαι καλά ευχαριστώ",
    "cp1250": "Bądź łaskaw wziąć chleb. Będę śmiał się.",
    "cp1255": "אני בסדר תודה", "cp1256": "أنا بخير شكرا", "koi8_r": "Столица Франции", "cp874": "ผมสบายดีครับ",
}  # fmt: skip


@pytest.mark.parametrize("text", WESTERN)
def test_a_western_file_is_read_and_said_to_be_guessed(tmp_path, text):
    rows = read(tmp_path / "rows.csv", f"prompt;response\nHi;{text}\n".encode("cp1252"))
    assert texts(rows) == [("Hi", text)]
    assert "1 rows read as Windows-1252, since they are not UTF-8" in "\n".join(check([tmp_path / "rows.csv"]).lines)


@pytest.mark.parametrize("encoding", FOREIGN)
def test_another_encoding_is_not_taken_for_windows_1252(tmp_path, encoding):
    """Polish and Russian were trained as letters with accents and signs, without a word."""
    content = f"prompt;response\nHi;{FOREIGN[encoding]}\nHi;plain\n".encode(encoding)
    assert encoding_of(content) == "utf-8-sig"
    bad, plain = read(tmp_path / "rows.csv", content)
    assert isinstance(bad, FailedRow)
    assert bad.reason == "line 2: not valid UTF-8: save the file as UTF-8 (iconv -f ITS-ENCODING -t UTF-8)"
    assert texts([plain]) == [("Hi", "plain")]


def test_frames_with_pandas_own_missing_values_and_tables_of_others():
    frame = pd.DataFrame([{**ONE, "system": None}, {**TWO, "system": "Be kind."}]).convert_dtypes()
    first, second = read_rows([frame])
    assert texts([first]) == BOTH[:1]
    assert [turn.role for turn in second.conversation.turns] == ["system", "user", "assistant"]

    class Frame:  # as a frame of Polars: what it has is Arrow's C interface
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.Table.from_pylist([ONE, TWO]).__arrow_c_stream__(requested_schema)

    assert texts(read_rows([Frame()])) == BOTH
