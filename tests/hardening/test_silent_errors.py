"""Inputs that once gave a wrong answer without a word: each is an error that names the place, or the right answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdss import DSSCollator, Guard, dss_loss, prepare_dss_dataset, star_scores, token_logprobs, weighted_ce
from fastdss.guards.answers import Answers, Place
from fastdss.loss.functional import live_rows
from fastdss.prefix.engine import tree_logits
from fastdss.prefix.tree import build_tree
from tests.support.builders import BATCH, make_guard, make_model, make_spec, make_tokenizer
from tests.support.loss_cases import make_problem, reference_arguments
from tests.support.scored import by_fields

P = make_problem(12, 6, 11, torch.float32)
ONE = {"prompt": ["Hello"], "response": ["You can call her today."]}


@pytest.fixture(scope="module")
def guard() -> Guard:
    return make_guard()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": -5}, ValueError, "budget: expected a positive integer, got -5"),  # gave unwritten memory as scores
        ({"budget": 0}, ValueError, "budget: expected a positive integer, got 0"),
        ({"max_tokens": 300.5}, ValueError, "max_tokens: expected an integer or None, got float"),
        ({"sharpen": float("inf")}, ValueError, "sharpen: expected a positive temperature or 'paper', got inf"),
        ({"ends": [[3, 1.5]]}, TypeError, r"row 0: ends\[1\]: expected an integer, got float"),
        ({"ends": [[3, 99]]}, ValueError, r"row 0: ends\[1\]: boundary 99 lies outside"),
    ],
)
def test_options_of_star_scores(guard: Guard, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        star_scores(guard, ONE, **options)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        # two texts of one length were read as rows of one character
        (
            {"prompt": "Hello", "response": "Hey!!"},
            r"batch\['prompt'\]: expected a list with one entry per row, got str",
        ),
        ({"prompt": None, "response": None}, r"batch\['prompt'\]: expected a list .* got NoneType"),
        ({"messages": "Hello"}, r"batch\['messages'\]: expected a list .* got str"),
        ({"prompt": ["a", None], "response": ["b", "c"]}, "row 1: expected 'messages', or 'prompt' and 'response'"),
        ({"prompt": ["a", 7], "response": ["b", "c"]}, "row 1: prompt: expected text, got int"),
    ],
)
def test_batches_of_another_shape(guard: Guard, batch: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        star_scores(guard, batch)


def test_what_no_forward_fills_is_nan(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that forgets a prefix must not show whatever was in memory as a score."""
    import fastdss.prefix.engine

    schedule = fastdss.prefix.engine.schedule
    monkeypatch.setattr(fastdss.prefix.engine, "schedule", lambda *args: list(schedule(*args))[:-1])
    tree = build_tree(guard.encode_prefixes([], "You can call her today.", [3, 12, 23]))
    logits = tree_logits(guard.model, guard.token_ids, [tree], [0])
    assert guard.scores(logits).isnan().sum() == 1


def test_a_share_never_exceeds_one() -> None:
    """Shares of two spellings, each rounded, can add up to 1.0000001, which no loss takes as a star."""
    guard = make_guard(check=False)
    guard.answers = Answers(Place((), {0: 1.0, 1: 1.0, 2: 0.0}))
    torch.manual_seed(0)
    logits = torch.cat([torch.randn(5000, 2), torch.full((5000, 1), -40.0)], dim=1)
    raw = torch.softmax(logits, -1)[:, :2].sum(-1)
    assert raw.max() > 1, "these logits show nothing"
    assert guard.scores(logits).max() == 1
    assert guard.scores(torch.full((1, 3), float("nan"))).isnan().all()


def test_a_third_verdict_cannot_weigh_more_than_a_safe_one() -> None:
    with pytest.raises(ValueError, match=r"other_weight: expected a number in \[0, 1\], got 1.5"):
        make_guard(spec=make_spec(other="No", other_weight=1.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"responses": ["You can call her today. Her number is 5."]},
            "last boundary is 23, .* ends at 40: score it anew",
        ),
        ({"ends": [[23, 3]], "scores": [torch.tensor([0.1, 0.9])]}, r"ends\[1\] = 3: must ascend"),
        ({"ends": [[3, 24]], "scores": [torch.tensor([0.1, 0.9])]}, r"ends\[1\] = 24: must ascend and lie within"),
        ({"ends": [[23]], "scores": [torch.tensor([0.1, 0.9])]}, "as many scores as ends .* got 2 and 1"),
        ({"scores": [torch.tensor([float("nan")])]}, r"scores\[0\] = nan: must be in \[0, 1\]"),
        ({"scores": [torch.tensor([1.5])]}, r"scores\[0\] = 1.5: must be in \[0, 1\]"),
    ],
)
def test_scores_of_another_text_never_become_weights(guard: Guard, change: dict[str, Any], message: str) -> None:
    scores = star_scores(guard, ONE)
    scores.token_weights(guard.tokenizer)
    known = {name: getattr(scores, name) for name in ("scores", "ends", "histories", "responses")}
    with pytest.raises(ValueError, match=f"row 0: .*{message}"):
        by_fields(**(known | change)).token_weights(guard.tokenizer)


def test_a_negative_length_is_an_error(guard: Guard) -> None:
    """As a slice it would have cut from the other end."""
    with pytest.raises(ValueError, match="max_length: expected a positive integer, got -3"):
        star_scores(guard, ONE).token_weights(guard.tokenizer, max_length=-3)


def test_a_template_may_hold_the_word_that_finds_the_response() -> None:
    template = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|> end of response {% endfor %}"
    row = star_scores(make_guard(), ONE).token_weights(make_tokenizer(), template=template)[0]
    assert sum(label != -100 for label in row["labels"]) > 5


@pytest.mark.parametrize("kl", ["k2", "reverse"])
def test_rows_of_another_batch(kl: str) -> None:
    """Rows from other labels or another kl_scale left tokens out of the loss, or their KL, in silence."""

    def loss(rows: Any) -> Tensor:
        reference = reference_arguments(P, kl)
        return dss_loss(P.hidden, P.lm_head, P.labels, P.star, kl=kl, rows=rows, **reference).loss

    right = live_rows(P.labels, P.star, kl_scale=0.5)
    torch.testing.assert_close(loss(right), loss(None))
    without_kl = live_rows(P.labels, P.star)
    with pytest.raises(ValueError, match=r"rows leave out position [01], which has a weight"):
        loss(without_kl)
    with pytest.raises(ValueError, match=rf"rows leave out position {right.index[-1]}, which has a weight"):
        loss(right.index[:-1])
    if kl == "reverse":
        with pytest.raises(ValueError, match=rf"kl_rows leave out position {right.index[2]}"):
            loss(right._replace(kl_rows=2))
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert compiled(right.index[:-1]).isnan(), "where no check can be made the loss itself tells"
    assert not compiled(right.index).isnan()


def test_rows_of_other_weights_for_log_probabilities() -> None:
    with pytest.raises(ValueError, match="rows leave out position"):
        token_logprobs(P.hidden, P.lm_head, P.labels, rows=live_rows(P.labels, P.star))


def test_live_rows_keeps_weights_that_single_precision_would_lose() -> None:
    star = torch.full((12,), 1 - 1e-12, dtype=torch.float64)
    assert live_rows(P.labels, star, kl_scale=0.5).kl_rows == int((P.labels != -100).sum())


@pytest.mark.parametrize("items", [float("nan"), 0.0, -1.0, torch.tensor(-2), torch.tensor(float("inf"))], ids=str)
def test_items_that_nothing_can_be_divided_by(items: Any) -> None:
    with pytest.raises(ValueError, match="num_items_in_batch: expected a positive number, got"):
        weighted_ce(P.hidden, P.lm_head, P.labels, num_items_in_batch=items)


def test_a_step_without_labels_costs_nothing_whoever_counted_its_items() -> None:
    """A trainer counts 0 items when all labels of a step are ignored; 0 / 0 would have ended the run with NaN."""
    hidden = P.hidden.clone().requires_grad_()
    loss = weighted_ce(hidden, P.lm_head, torch.full_like(P.labels, -100), num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert loss == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    with pytest.raises(ValueError, match="num_items_in_batch: expected the number of labels that count, got 0 of"):
        weighted_ce(P.hidden, P.lm_head, P.labels, num_items_in_batch=torch.tensor(0))


def test_pickled_weights_are_not_loaded(tmp_path: Any) -> None:
    tokenizer = make_tokenizer()
    model = make_model("llama", len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    Guard.from_pretrained(str(tmp_path), spec=make_spec())
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        Guard.from_pretrained(str(tmp_path), spec=make_spec())


def test_batch_of_the_builders_is_what_these_tests_think(guard: Guard) -> None:
    """The guard tells the rows apart: a constant guard would make every equality above true."""
    scores = torch.cat(star_scores(guard, BATCH).scores)
    assert scores.max() - scores.min() > 1e-2


def test_a_row_far_into_a_data_set_is_called_by_its_own_number() -> None:
    """Preparation maps a thousand rows at a time; row 1001 was called row 1."""
    datasets = pytest.importorskip("datasets", reason="needs the [train] extra")
    rows = [{"prompt": "a", "response": "Yes.", "scores": [0.5], "ends": [4]}] * 1003
    rows[1001] = rows[1001] | {"response": "Yes, and more."}
    with pytest.raises(ValueError, match="row 1001: turn 1: the last boundary is 4, but the answer's text ends at 14"):
        prepare_dss_dataset(datasets.Dataset.from_list(rows), make_tokenizer())


def test_errors_about_a_turn_name_the_row_of_the_batch(guard: Guard) -> None:
    """With turns="all" a row of the batch becomes several results; an error is about the batch."""
    turns = [{"role": role, "content": "Hi."} for role in ("user", "assistant", "user", "assistant")]
    long = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "word " * 2000}]
    with pytest.raises(ValueError, match=r"row 1: \d+ tokens exceed"):
        star_scores(guard, {"messages": [turns, long]}, turns="all")


@pytest.mark.parametrize("name", ["input_ids", "labels"])
def test_ids_that_are_no_integers_are_not_rounded(name: str) -> None:
    row: dict[str, Any] = {"input_ids": [1, 2], "labels": [1, 2], "token_weights": [1, 0.5]}
    assert DSSCollator(0)([row])["token_weights"].dtype == torch.float32
    with pytest.raises(TypeError, match=f"example 1: {name}: expected integers, got torch.float32"):
        DSSCollator(0)([row, row | {name: [1.5, 2.0]}])
