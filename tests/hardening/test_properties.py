"""Properties over random shapes, types, options, tokenizers, templates and text. --hypothesis-profile=long for more."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fastdss import Guard, dss_loss, star_scores
from fastdss.loss.functional import live_rows
from tests.support.builders import (
    ARCHITECTURES,
    CHAT_TEMPLATE,
    TEMPLATE,
    TOKENIZERS,
    make_guard,
    make_spec,
    make_tokenizer,
)
from tests.support.loss_cases import KLS, make_problem, run, truth
from tests.support.numerics import assert_gradient_close, assert_tokens_close
from tests.support.profiles import examples
from tests.support.scored import by_fields

objectives = st.fixed_dictionaries(
    {},
    optional={
        "label_smoothing": st.floats(0, 0.9),
        "z_loss": st.floats(0, 1e-2),
        "logit_scale": st.floats(0.05, 4),
        "softcap": st.floats(1, 50),
        "ref_logit_scale": st.floats(0.05, 4),
        "kl_scale": st.just(0.0) | st.floats(1e-6, 3),
        "reduction": st.sampled_from(["mean", "sum"]),
    },
)


@examples(60)
@given(
    n=st.integers(1, 40), d=st.integers(1, 20), v=st.integers(2, 150), kl=st.sampled_from(KLS), options=objectives,
    dtype=st.sampled_from([torch.float64, torch.float32]), chunk_bytes=st.none() | st.integers(1, 60_000),
    rows=st.sampled_from(["none", "live", "dense"]), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_loss_against_float64(
    n: int, d: int, v: int, kl: str, options: dict[str, Any], dtype: torch.dtype, chunk_bytes: int | None, rows: str,
    seed: int,
) -> None:  # fmt: skip
    problem = make_problem(n, d, v, dtype, seed)
    given_rows: dict[str, Any] = {"compact": False} if rows == "dense" else {}
    if rows == "live":
        given_rows = {"rows": live_rows(problem.labels, problem.star, kl_scale=options.get("kl_scale", 0.5))}
    expected = truth(problem, kl, **options)
    assume(all(bool(t.isfinite().all()) for t in (expected.loss.loss, expected.d_head)))
    assume(expected.loss.token_kl.abs().max() < 1e4)  # exp(-d) of k3 and d**2 carry the error of d that much further
    actual = run(problem, kl, chunk_bytes=chunk_bytes, **given_rows, **options)
    for field in ("token_ce", "token_kl"):
        value, true = getattr(actual.loss, field), getattr(expected.loss, field)
        slack = 1 + (100 if field == "token_kl" and kl == "k3" else 10)  # d is a difference of two log-probabilities
        assert_tokens_close(value / slack, true / slack, precision=dtype, name=field)
    for field in ("d_hidden", "d_head", "d_bias"):
        got, true = getattr(actual, field), getattr(expected, field)
        error, norm = (got.double() - true).norm(), true.norm()
        limit = 1e-9 if dtype == torch.float64 else 1e-4
        assert error <= limit * norm + limit * 1e-2, (field, error, norm)


def test_the_reference_of_label_forms_has_its_own_scale_and_cap() -> None:
    problem = make_problem(20, 12, 40, torch.float64)
    given_options = {"logit_scale": 0.7, "softcap": 8.0, "ref_logit_scale": 1.9, "ref_softcap": 3.0}
    loss = dss_loss(
        problem.hidden, problem.lm_head, problem.labels, problem.star, kl="k2", ref_hidden=problem.ref_hidden,
        ref_lm_head=problem.ref_lm_head, ref_bias=problem.bias, **given_options,
    )  # fmt: skip
    raw = 1.9 * (problem.ref_hidden @ problem.ref_lm_head.T + problem.bias)
    labels = problem.labels.clamp(min=0)[:, None]
    ref = torch.log_softmax(3 * torch.tanh(raw / 3), 1).gather(1, labels)[:, 0]
    expected = dss_loss(
        problem.hidden,
        problem.lm_head,
        problem.labels,
        problem.star,
        kl="k2",
        ref_logprobs=ref,
        logit_scale=0.7,
        softcap=8.0,
    )
    assert_tokens_close(loss.token_kl, expected.token_kl, precision=torch.float64)
    assert_tokens_close(loss.loss, expected.loss, precision=torch.float64)


def test_the_property_would_notice_a_lost_chunk() -> None:
    """The tolerance above still rejects a gradient without one of forty rows."""
    problem = make_problem(40, 8, 50, torch.float32)
    right, short = truth(problem, "k2"), make_problem(40, 8, 50, torch.float32)
    short.labels[7] = -100
    wrong = truth(short, "k2", num_items_in_batch=int((problem.labels != -100).sum()))
    assert (right.d_head - wrong.d_head).norm() > 1e-3 * right.d_head.norm()
    with pytest.raises(AssertionError):
        assert_gradient_close(wrong.d_hidden, right.d_hidden, precision=torch.float32)


UNTRIMMED = TEMPLATE.replace(" | trim", "")
TAIL_FIRST = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    "{{ messages | length }} turns. Verdict:<|end|><|start|>assistant"
)


@functools.cache
def guard(architecture: str, kind: str, template: str) -> Guard:
    return make_guard(architecture, kind, spec=make_spec(template=template))


pieces = st.sampled_from(
    [
        *(
            "safe",
            "unsafe",
            "You can call her",
            " on 555 0100.",
            "\n\n",
            "  ",
            ".",
            "!",
            "\t",
            "a",
            "1",
            "ﬁ",
            "{{ x }}",
        ),
        *("e\u0301", "🙂", "\U0001f469\u200d\U0001f467", "日本語", "。", "שלום", "\u202e", "\u00a0", "\u200b", "\x00"),
        *("<|end|>", "<|", "<END CONVERSATION>", "\ufdd0", "User:"),
    ]
)
texts = st.lists(pieces | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=14).map("".join)


@examples(30)
@given(
    rows=st.lists(st.tuples(st.sampled_from(["Hello", "How do I reach Anna?", ""]), texts), min_size=1, max_size=4),
    cuts=st.integers(1, 4) | st.lists(st.floats(0, 1), min_size=1, max_size=6),
    unit=st.sampled_from(["word", "token", "character", "sentence"]), budget=st.integers(1, 300),
    architecture=st.sampled_from(sorted(ARCHITECTURES)), kind=st.sampled_from(TOKENIZERS),
    template=st.sampled_from([TEMPLATE, UNTRIMMED, TAIL_FIRST]), order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_tree_scores_are_one_forward_per_prefix(
    rows: list[tuple[str, str]],
    cuts: Any,
    unit: str,
    budget: int,
    architecture: str,
    kind: str,
    template: str,
    order: Any,
) -> None:
    """Whatever the text, the cuts, the tokenizer, the template, the company and the budget."""
    judge = guard(architecture, kind, template)
    batch = {"prompt": [prompt for prompt, _ in rows], "response": [text for _, text in rows]}
    options: dict[str, Any] = {"every": cuts, "unit": unit} if isinstance(cuts, int) else {}
    if not isinstance(cuts, int):
        options = {"ends": [[int(share * len(text)) for share in cuts] for _, text in rows]}
    naive = star_scores(judge, batch, method="per_prefix", **options)
    places = list(range(len(rows)))
    order.shuffle(places)
    shuffled = {name: [values[i] for i in places] for name, values in batch.items()}
    if "ends" in options:
        options["ends"] = [options["ends"][i] for i in places]
    tree = star_scores(judge, shuffled, budget=budget, gemm="default", **options)
    for place, i in enumerate(places):
        assert tree.ends[place] == naive.ends[i]
        assert tree.flags[place] == naive.flags[i]
        torch.testing.assert_close(tree.scores[place], naive.scores[i], rtol=0, atol=2e-6)


TRIM = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>{% endfor %}"
hostile = st.text(st.characters(exclude_categories=["Cs"]), max_size=24) | texts


@examples(80)
@given(response=hostile, kind=st.sampled_from(TOKENIZERS), template=st.sampled_from([None, TRIM]), data=st.data())
def test_alignment_over_any_text(response: str, kind: str, template: str | None, data: Any) -> None:
    """Combining marks, emoji, CJK, right-to-left, control strings: each token has the score of the chunk in which its
    characters end, found here by decoding growing prefixes of the row."""
    tokenizer = make_tokenizer(kind)
    size = len(response.rstrip())
    ends = sorted({*data.draw(st.lists(st.integers(1, max(size, 1)), max_size=4)), size} - {0} if size else {0})
    scores = [round(0.05 + 0.9 * k / len(ends), 3) for k in range(len(ends))]
    row = stored(response, ends, scores).token_weights(tokenizer, template=template)[0]
    labelled = [t for t, label in enumerate(row["labels"]) if label != -100]
    if not response.strip():  # no answer: it does not teach to end at once
        assert not labelled
        return
    assert labelled == list(range(labelled[0], labelled[-1] + 1))
    shown = response.strip() if template else response
    skipped = response.index(shown) if shown else 0
    body = labelled[:-1]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"][labelled[-1]]) == "<|end|>"
    assert row["token_weights"][labelled[-1]] == pytest.approx(scores[-1])
    weights = [row["token_weights"][t] for t in body]
    assert weights == sorted(weights), "scores ascend here, so weights never fall"
    whole = decode(tokenizer, [row["input_ids"][t] for t in body])
    assume(whole == shown)  # a first or last token may hold a neighbour's characters; the suite has those cases
    for count, t in enumerate(body, 1):
        done = decode(tokenizer, [row["input_ids"][s] for s in body[:count]])
        if shown.startswith(done) and done and not done[-1].isspace():
            end = next((k for k, e in enumerate(ends) if e >= len(done) + skipped), len(ends) - 1)
            assert row["token_weights"][t] == pytest.approx(scores[end]), (count, done)


def stored(response: str, ends: list[int], scores: list[float]) -> Any:
    history = [{"role": "user", "content": "Hello there."}]
    return by_fields([scores], [ends], [history], [response])


def decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@examples(30)
@given(before=st.text(st.characters(exclude_categories=["Cs"]), max_size=5), code=st.integers(0xD800, 0xDFFF))
def test_lone_surrogates_are_named_by_row_and_place(before: str, code: int) -> None:
    judge = guard("llama", "llama3", TEMPLATE)
    batch = {"prompt": ["a", "b"], "response": ["fine", before + chr(code) + "!"]}
    with pytest.raises(ValueError, match=rf"row 1: message 1: lone surrogate at character {len(before)};"):
        star_scores(judge, batch)
    with pytest.raises(ValueError, match=rf"row 0: message 0: lone surrogate at character {len(before)};"):
        star_scores(judge, {"prompt": [batch["response"][1]], "response": ["fine"]})


def test_chat_templates_of_the_builders_differ() -> None:
    assert len({CHAT_TEMPLATE, TEMPLATE, UNTRIMMED, TAIL_FIRST, TRIM}) == 5
