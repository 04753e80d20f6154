"""StarScorer: the scores of ``star_scores`` in any engine's hands, and a bad row fails alone."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdss import Guard, StarScorer, star_scores
from fastdss.chat.conversation import plain
from fastdss.corpus.rows import Row, read_rows
from fastdss.corpus.scorer import BATCH_CHARACTERS, BATCH_ROWS, scoring_batches
from fastdss.guards.known import TINY, TINY_FOLDER
from fastdss.guards.spec import AnswerField
from fastdss.star import scoring

from .fakes import CANARY

pytest.importorskip("pyarrow", reason="needs the [score] extra")
GOOD = [
    {"prompt": "How do I reach the club?", "response": "You can call Ada on 555-0100 at any time, or write to her."},
    {"prompt": "Remind me of the lemons.", "response": "Reminder: lemons."},
    {"prompt": [{"role": "user", "content": "Hello"}], "response": ""},
]
SYSTEM = {
    "prompt": [{"role": "system", "content": CANARY}],
    "response": f"{CANARY} or not.",
}  # tiny's template refuses, untold
LONG = {"prompt": "Go on.", "response": f"{CANARY} " * 2000}  # beyond the tiny guard's context


@pytest.fixture(scope="module")
def guard():
    return Guard.tiny()


def columns(rows):
    return {name: [row[name] for row in rows] for name in ("prompt", "response")}


def flat(found):
    """Scores, ends, flags and text of each row's only judged turn, empty where there is none, and its error."""
    turns = [row[0] if row else {"scores": [], "ends": [], "flags": []} for row in found["star"]]
    columns = {name: [turn[name] for turn in turns] for name in ("scores", "ends", "flags")}
    return {**columns, "error": list(found["error"])}


def rows_of(records):
    return list(read_rows([records]))


def ignore(done):
    pass


def test_a_batch_has_the_scores_of_star_scores(guard):
    star = star_scores(guard, columns(GOOD), every=3)
    found = pickle.loads(pickle.dumps(StarScorer("tiny", every=3)))(columns(GOOD))
    assert list(found) == ["star", "error"]
    scored = flat(found)
    for row in range(2):
        assert scored["scores"][row] == pytest.approx(star.scores[row].tolist(), abs=1e-6)
    assert scored["ends"] == [*star.ends[:2], []]
    assert scored["flags"] == [[], ["one_boundary"], []]
    assert [turn["text"] for row in found["star"] for turn in row] == [row["response"] for row in GOOD[:2]]
    assert scored["error"] == [None, None, "row 2: the assistant's answer is empty"]


@pytest.fixture(scope="module")
def doubter():
    """The tiny guard with its head turned round: safe where the other says unsafe, by a smaller margin."""
    doubter = Guard.tiny()
    with torch.no_grad():
        doubter.model.get_output_embeddings().weight.mul_(-0.25)
    return doubter


@pytest.mark.parametrize("combine", ["mean", "min"])
def test_several_guards_give_what_star_scores_gives_of_them(guard, doubter, combine):
    star = star_scores([guard, doubter], columns(GOOD), combine=combine)
    scored = flat(StarScorer(["tiny", doubter], combine=combine)(columns(GOOD)))
    for row in range(2):
        assert scored["scores"][row] == pytest.approx(star.scores[row].tolist(), abs=1e-6)
    assert scored["ends"][:2] == star.ends[:2]
    assert scored["scores"] != flat(StarScorer("tiny")(columns(GOOD)))["scores"]


def test_identity_of_several_guards_names_each_and_how_they_combine(guard, doubter):
    one, both = StarScorer("tiny").identity(), StarScorer(["tiny", doubter]).identity()
    assert StarScorer(["tiny"]).identity() == one == StarScorer("tiny", combine="min").identity()
    assert both["guard"] == ["tiny", doubter.spec.name]
    assert both["revision"][0] == one["revision"] != both["revision"][1]
    assert both["template_hash"] == [one["template_hash"]] * 2
    assert both["options"] == one["options"] | {"combine": "mean"}
    others = [StarScorer([doubter, "tiny"]), StarScorer(["tiny", doubter], combine="min"), StarScorer(["tiny", "tiny"])]
    keys = [json.dumps(key(scorer)) for scorer in [StarScorer("tiny"), StarScorer(["tiny", doubter]), *others]]
    assert len(set(keys)) == len(keys)


def test_what_several_guards_cannot_have(guard):
    with pytest.raises(ValueError, match="guard: expected at least one, got none"):
        StarScorer([])
    with pytest.raises(ValueError, match="revision: of one guard, got 2"):
        StarScorer(["some/guard", "other/guard"], revision="main")
    with pytest.raises(ValueError, match="dtype: only for a guard that is loaded"):
        StarScorer(["some/guard", guard], dtype="bfloat16")
    with pytest.raises(ValueError, match="combine"):
        StarScorer([guard, guard], combine="max")(columns(GOOD))


def test_one_guard_that_fails_fails_the_row(guard):
    broken = Guard.tiny()
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(float("nan"))
    for combine in ("mean", "min"):
        scored = flat(StarScorer([guard, broken], combine=combine)(columns(GOOD[:1])))
        assert scored["scores"] == [[]]
        assert scored["error"] == ["the guard's logits are not finite"]


def test_a_reason_that_would_quote_the_row_names_the_error_alone(guard, monkeypatch):
    scorer = StarScorer(guard)
    scorer(columns(GOOD))

    def fail(guards, judged, options, approx=None):
        raise ValueError(f"cannot digest {judged[0].text}")

    monkeypatch.setattr(scoring, "score_turns", fail)
    (reason,) = scorer(columns([{"prompt": "Hello", "response": CANARY}]))["error"]
    assert reason == f"ValueError in a response of {len(CANARY)} characters after the roles user"


def test_it_pickles_small_after_it_has_loaded():
    scorer = StarScorer("tiny")
    before = scorer(columns(GOOD[:1]))
    assert len(pickle.dumps(scorer)) < 2000
    assert pickle.loads(pickle.dumps(scorer))(columns(GOOD[:1])) == before


def test_it_is_the_batch_function_of_datasets_map(guard):
    datasets = pytest.importorskip("datasets", reason="needs the [score] extra")
    rows = datasets.Dataset.from_list([GOOD[0], LONG, GOOD[1]])
    mapped = rows.map(StarScorer(guard), batched=True)
    assert [bool(star) for star in mapped["star"]] == [True, False, True]
    assert "exceed the context" in mapped["error"][1]


def test_bad_rows_fail_alone_and_the_reason_has_no_text(guard):
    guard = Guard(guard.model, guard.tokenizer, replace(TINY, messages=None))  # shown system turns as they are
    alone = flat(StarScorer(guard)(columns(GOOD)))
    unreadable = {"prompt": "Hello", "response": f"{CANARY} \ud800"}
    mixed = [SYSTEM, GOOD[0], LONG, SYSTEM, GOOD[1], GOOD[2], LONG, unreadable]
    scored = flat(StarScorer(guard)(columns(mixed)))
    for place, row in ((1, 0), (4, 1)):
        assert scored["scores"][place] == pytest.approx(alone["scores"][row], abs=1e-6)
        assert scored["error"][place] is None
    for place, reason in (
        (0, "refuses the conversation"),
        (2, "exceed the context"),
        (3, "refuses"),
        (7, "surrogate"),
    ):
        assert reason in scored["error"][place]
        assert scored["scores"][place] == scored["ends"][place] == []
    assert CANARY not in json.dumps(scored["error"])


def test_logits_that_are_not_finite_fail_the_row():
    guard = Guard.tiny()
    with torch.no_grad():
        guard.model.get_output_embeddings().weight.fill_(float("nan"))
    scored = flat(StarScorer(guard)(columns(GOOD[:1])))
    assert scored["scores"] == [[]]
    assert scored["error"] == ["the guard's logits are not finite"]


def test_out_of_memory_is_a_rows_but_a_broken_device_is_not(guard, monkeypatch):
    scorer = StarScorer(guard)
    scorer(columns(GOOD))

    def fail(guards, judged, options, approx=None):
        if any(len(item.text) > 20 for item in judged):
            raise error
        return score_turns(guards, judged, options, approx=approx)

    score_turns = scoring.score_turns
    monkeypatch.setattr(scoring, "score_turns", fail)
    error = torch.OutOfMemoryError("tried to allocate")
    assert [reason is None for reason in scorer(columns(GOOD[:2]))["error"]] == [False, True]
    error = RuntimeError("device-side assert")
    with pytest.raises(RuntimeError, match="device-side"):
        scorer(columns(GOOD))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every: expected a positive integer, got 0"),
        ({"unit": "page"}, "unit: expected one of"),
        ({"max_tokens": 0}, "max_tokens: expected a positive integer, got 0"),
        ({"method": "fast"}, "method: expected one of"),
        ({"sharpen": -1.0}, "sharpen: expected a positive temperature"),
        ({"max_tokens": 3}, "3 tokens"),
    ],
)
def test_options_that_no_guard_takes_are_raised_not_recorded(guard, options, message):
    with pytest.raises(ValueError, match=message):
        StarScorer(guard, **options)(columns(GOOD))


def test_a_loaded_guard_has_no_revision(guard):
    with pytest.raises(ValueError, match="revision: only for a guard that is loaded"):
        StarScorer(guard, revision="main")
    with pytest.raises(ValueError, match="revision: only an id of the Hub has revisions, and tiny is none"):
        StarScorer("tiny", revision="main")


def test_truncation_is_recorded(guard):
    scored = flat(StarScorer(guard, max_tokens=200)(columns([LONG])))
    assert scored["flags"] == [["truncated"]]
    assert len(scored["scores"][0]) == len(scored["ends"][0]) > 1


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(TINY_FOLDER, tmp_path / "tiny_guard"))


def key(scorer):
    return {name: value for name, value in scorer.identity().items() if name != "guard"}


def test_identity_follows_what_scores_depend_on(copy, guard):
    same = key(StarScorer(str(copy)))
    assert key(StarScorer("tiny")) == same
    assert key(StarScorer(copy, gemm="default", method="per_prefix", budget=64, device="cpu")) == same
    others = [
        StarScorer(copy, every=4),
        StarScorer(copy, unit="token"),
        StarScorer(copy, max_tokens=100),
        StarScorer(copy, sharpen=0.5),
        StarScorer(copy, dtype="bfloat16"),
        StarScorer(copy, spec=replace(TINY, answer_prefix="\n")),
        StarScorer(copy, spec=replace(TINY, safe="unsafe", unsafe="safe")),
        StarScorer(copy, spec=replace(TINY, fields=(AnswerField("Refused: ", ("safe", "unsafe")),))),
    ]
    keys = [json.dumps(key(scorer)) for scorer in [StarScorer(copy), *others]]
    assert len(set(keys)) == len(keys)


def test_identity_reads_every_byte_of_the_weights_and_the_template(copy):
    before = key(StarScorer(copy))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1  # same name, same size, same header
    weights.write_bytes(content)
    after = key(StarScorer(copy))
    assert after["revision"] != before["revision"]
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("private", "secret"))
    assert key(StarScorer(copy))["template_hash"] != before["template_hash"]


def test_identity_of_a_guard_in_memory_follows_its_weights():
    guard = Guard.tiny()
    before = key(StarScorer(guard))
    assert key(StarScorer(guard)) == before
    with torch.no_grad():
        guard.model.get_input_embeddings().weight[0, 0] += 1
    assert key(StarScorer(guard))["revision"] != before["revision"]


def test_guards_with_code_or_pickles_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        StarScorer(copy).identity()
    (copy / "evil.py").write_text("raise SystemExit('remote code ran')")
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "pytorch_model.bin").rename(copy / "model.safetensors")
    with pytest.raises(ValueError, match="needs code from its repository, which fastdss never runs"):
        StarScorer(copy, spec=TINY)(columns(GOOD))


def test_batches_hold_rows_of_similar_length_under_caps():
    sizes = [*range(200), BATCH_CHARACTERS // 2, BATCH_CHARACTERS // 2, BATCH_CHARACTERS * 2, 5]
    chats = [plain([{"role": "assistant", "content": "x" * size}]) for size in sizes]
    rows = [Row(str(i), chat, (0,), "") for i, chat in enumerate(chats)]
    batches = list(scoring_batches(rows))
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    ordered = [sizes[index] for batch in batches for index in batch]
    assert ordered == sorted(sizes)
    assert all(len(batch) <= BATCH_ROWS for batch in batches)
    assert all(len(batch) == 1 or sum(sizes[i] for i in batch) <= BATCH_CHARACTERS for batch in batches)
    assert list(scoring_batches([])) == []


@pytest.mark.parametrize("format", [None, "arrow", "pandas", "numpy"])
def test_types_of_arrow_are_the_same_in_every_batch(guard, format):
    """The first error came after the first written batch, whose column of errors had been of no type."""
    datasets = pytest.importorskip("datasets", reason="needs the [score] extra")
    rows = datasets.Dataset.from_list([GOOD[0], GOOD[1], {"prompt": "Go on.", "response": LONG["response"]}])
    mapped = rows.with_format(format).map(StarScorer(guard), batched=True, batch_size=1, writer_batch_size=1)
    mapped = mapped.with_format(None)
    assert mapped.column_names == ["prompt", "response", "star", "error"]
    assert mapped.features["error"].dtype == "string"
    assert [bool(star) for star in mapped["star"]] == [True, True, False]
    assert mapped["error"][:2] == [None, None]
    assert "exceed the context" in mapped["error"][2]
    assert mapped["star"][0][0]["scores"] == pytest.approx(
        star_scores(guard, columns(GOOD[:1])).scores[0].tolist(), abs=1e-6
    )


def test_the_fingerprint_holds_the_guards_weights(copy):
    """A guard trained further in its folder gave the scores of the one before from the cache."""
    fingerprint = pytest.importorskip("datasets.fingerprint", reason="needs the [score] extra")
    before = fingerprint.Hasher.hash(StarScorer(copy))
    assert fingerprint.Hasher.hash(StarScorer(copy)) == before
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert fingerprint.Hasher.hash(StarScorer(copy)) != before


def test_a_frame_and_a_table_come_back_with_the_columns(guard):
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = StarScorer(guard)(pd.DataFrame(GOOD[:2], index=[7, 9]))
    table = StarScorer(guard)(pa.Table.from_pylist(GOOD[:2]))
    assert list(frame.columns) == table.column_names == ["prompt", "response", "star", "error"]
    assert list(frame.index) == [7, 9]
    assert pa.Table.from_pandas(frame).schema.field("star").type == table.schema.field("star").type


def test_turns_of_one_conversation_cost_one_trunk(guard):
    """Where a guard reads whole conversations, ten turns are prefixes of one rendering."""
    from fastdss.star.forest import _sharing, _tree
    from fastdss.star.scoring import Judged

    chat = plain(
        [{"role": r, "content": f"{r} {t} says some words."} for t in range(10) for r in ("user", "assistant")]
    )
    judged = [Judged(chat, turn, 0, 0) for turn in chat.trained]
    reader = Guard(guard.model, guard.tokenizer, replace(TINY, messages=None))
    trees = [_tree(reader, 0, chat.before(j.turn), j.text, [5, len(j.text)], None) for j in judged]
    joined, first = _sharing(trees, [0] * 10)
    assert (len(joined), first) == (1, [0])
    assert joined[0].num_tokens < sum(tree.num_tokens for tree in trees) / 1.5
    renderings = [tree.rendering(k) for tree in trees for k in range(tree.num_prefixes)]
    assert [joined[0].rendering(k) for k in range(20)] == renderings
    apart, _ = _sharing(trees, list(range(10)))  # rows of their own
    assert len(apart) == 10
    whole = StarScorer(reader).score_rows(rows_of([{"messages": chat.records()}]), ignore)[0]
    for item in judged:
        alone = star_scores(reader, {"messages": [chat.records()[: item.turn + 1]]})
        (turn,) = [turn for turn in whole.turns if turn.turn == item.turn]
        assert turn.scores == pytest.approx(alone.scores[0].tolist(), abs=1e-6)


def test_rows_that_hold_scores_are_not_judged_again_in_silence(guard):
    found = StarScorer(guard)(columns(GOOD[:1]))
    with pytest.raises(ValueError, match="hold scores already"):
        StarScorer(guard)({**columns(GOOD[:1]), **found})
