"""Scored conversations become training rows in which every token keeps the score of its own chunk."""

import logging

import pytest

from fastdss.train.prepare import pack_dataset, prepare_dss_dataset, truncate_dataset
from tests.support.scored import by_fields
from tests.support.tiny_models import scored_rows, tiny_tokenizer

datasets = pytest.importorskip("datasets", reason="needs the [train] extra")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def expected_weights(tokenizer, row, prepared):
    """Weights from first principles: decode the response's tokens one by one and look their last character up."""
    labelled = [t for t, label in enumerate(prepared["labels"]) if label != -100]
    seen = ""
    for t in labelled[:-1]:
        seen += tokenizer.decode([prepared["input_ids"][t]])
        chunk = next(k for k, end in enumerate(row["ends"]) if len(seen) <= end)
        yield t, row["scores"][chunk]
    assert seen == row["response"]
    assert tokenizer.decode([prepared["input_ids"][labelled[-1]]]) == "<|im_end|>"
    yield labelled[-1], row["scores"][-1]


@pytest.mark.parametrize("kind", ["list", "Dataset", "messages"])
def test_every_token_has_the_score_of_its_chunk(tokenizer, kind):
    rows = scored_rows()
    given = rows
    if kind == "messages":
        given = [
            {
                "messages": [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["response"]},
                ],
                "scores": row["scores"],
                "ends": row["ends"],
            }
            for row in rows
        ]
    prepared = prepare_dss_dataset(datasets.Dataset.from_list(given) if kind != "list" else given, tokenizer)
    assert set(prepared.column_names) == {"input_ids", "labels", "token_weights"}
    for row, got in zip(rows, prepared, strict=True):
        found = dict(expected_weights(tokenizer, row, got))
        for t, label in enumerate(got["labels"]):
            assert got["token_weights"][t] == pytest.approx(found.get(t, 0.0)), (t, label)
            assert label in (-100, got["input_ids"][t])


def test_truncation_keeps_each_tokens_own_weight(tokenizer, caplog):
    whole = prepare_dss_dataset(scored_rows(), tokenizer)
    lengths = [len(ids) for ids in whole["input_ids"]]
    first_label = [next(t for t, label in enumerate(labels) if label != -100) for labels in whole["labels"]]
    limit = (min(first_label) + sorted(lengths)[2]) // 2
    cut = prepare_dss_dataset(scored_rows(), tokenizer, max_length=limit)
    assert len(cut) == len(whole)
    for before, after in zip(whole, cut, strict=True):
        assert {name: value[:limit] for name, value in before.items()} == after
    assert list(truncate_dataset(whole, limit)) == list(cut)
    with caplog.at_level(logging.WARNING):
        assert len(prepare_dss_dataset(scored_rows(), tokenizer, max_length=min(first_label))) == 0
    assert "6 of 6 rows have no label" in caplog.text


def test_packing_moves_all_columns_together(tokenizer):
    whole = prepare_dss_dataset(scored_rows(), tokenizer)
    whole = whole.add_column("ref_logprobs", [[-float(i)] * len(ids) for i, ids in enumerate(whole["input_ids"])])
    longest = max(len(ids) for ids in whole["input_ids"])
    packed = pack_dataset(whole, 2 * longest)
    assert len(packed) < len(whole)
    assert sum(len(lengths) for lengths in packed["seq_lengths"]) == len(whole)
    for row in packed:
        start = 0
        for length in row["seq_lengths"]:
            document = {name: row[name][start : start + length] for name in whole.column_names}
            assert document in list(whole)
            start += length
    again = prepare_dss_dataset(scored_rows(), tokenizer, max_length=2 * longest, packing=True)
    assert again["seq_lengths"] == packed["seq_lengths"]


def test_star_scores_are_taken_as_they_are(tokenizer):
    rows = scored_rows()
    scores = by_fields(
        scores=[row["scores"] for row in rows],
        ends=[row["ends"] for row in rows],
        histories=[[{"role": "user", "content": row["prompt"]}] for row in rows],
        responses=[row["response"] for row in rows],
    )
    for ours, theirs in zip(prepare_dss_dataset(scores, tokenizer), scores.token_weights(tokenizer), strict=True):
        assert ours["input_ids"] == theirs["input_ids"]
        assert ours["labels"] == theirs["labels"]
        assert ours["token_weights"] == pytest.approx(theirs["token_weights"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": None}, "row 2: it has no scores"),
        ({"star": [], "error": "too long"}, r"row 2: it has no scores \(the scorer's reason: too long\): drop the row"),
        ({"scores": [0.5]}, "row 2: expected as many scores as ends"),
        ({"scores": [float("nan")] * 8}, "row 2: it has no usable score"),
        ({"flags": ["failed"]}, "row 2: it has no usable score"),
        (
            {"scores": [None], "ends": [4]},
            "row 2: scores and ends: expected numbers",
        ),  # escaped as comparisons of types
        ({"scores": ["0.5"], "ends": [4]}, "row 2: scores and ends: expected numbers"),
        ({"scores": [0.5], "ends": [None]}, "row 2: scores and ends: expected numbers"),
        ({"response": None}, "row 2: expected 'messages', or 'prompt' and 'response'"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "row 2: expected the last turn to be the assistant's"),
    ],
)
def test_rows_that_cannot_be_used_are_named_and_not_quoted(tokenizer, change, message):
    rows = scored_rows()
    rows[2] = rows[2] | change
    if change.get("scores") and len(change["scores"]) == 8:
        rows[2]["scores"] = change["scores"][: len(rows[2]["ends"])]
    with pytest.raises(ValueError, match=message) as error:
        prepare_dss_dataset(rows, tokenizer)
    assert "deep breath" not in str(error.value)


def unscored(shaped):
    features = shaped.select_columns(["input_ids", "labels"]).features
    return datasets.Dataset.from_dict({"input_ids": [[5] * 200], "labels": [[5] * 200]}, features=features)


def test_rows_with_and_without_weights_are_not_packed_together(tokenizer):
    """Where the longest row had none, all lost theirs, and trained without shaping."""
    shaped = prepare_dss_dataset(scored_rows(), tokenizer)
    plain = unscored(shaped)
    for mixed in ([shaped, plain], [plain, shaped]):
        with pytest.raises(ValueError, match=r"example \d has columns .*: pack the two kinds apart"):
            pack_dataset(datasets.concatenate_datasets(mixed), 256)


def test_a_row_without_weights_is_cut_like_the_others(tokenizer):
    shaped = prepare_dss_dataset(scored_rows(1), tokenizer)
    plain = unscored(shaped)
    cut = truncate_dataset(datasets.concatenate_datasets([shaped, plain]), 30)
    assert [len(row["input_ids"]) for row in cut] == [min(30, len(shaped[0]["input_ids"])), 30]
    assert cut[1]["token_weights"] is None


def test_several_data_sets_are_none(tokenizer):
    parts = datasets.DatasetDict(train=datasets.Dataset.from_list(scored_rows()))
    with pytest.raises(TypeError, match="scored: expected StarScores or rows, got DatasetDict: pass one of its parts"):
        prepare_dss_dataset(parts, tokenizer)


def test_packing_needs_a_length(tokenizer):
    with pytest.raises(ValueError, match="packing needs max_length"):
        prepare_dss_dataset(scored_rows(), tokenizer, packing=True)
