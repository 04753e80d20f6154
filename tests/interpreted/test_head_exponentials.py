"""The product whose epilogue makes exponentials, in the interpreter: against float64, and rows that need a second."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdss.kernels.configs import HeadConfig
from fastdss.kernels.head_exponentials import fits, head_config, launch_head_exponentials_fwd
from torch import Tensor

POINTERS = HeadConfig(16, 32, 16, 2, 4, 2, descriptors=False, halves=False)
CONFIGS = {
    "pointers": POINTERS,
    "halves": POINTERS._replace(halves=True),
    "descriptors": POINTERS._replace(descriptors=True),
    "descriptors, halves": POINTERS._replace(descriptors=True, halves=True),
}
# One row and a width below a tile; every dimension ragged; several tiles a program, row blocks in two groups, the last
# group smaller than the others; hidden dimensions that fill their tiles.
SHAPES = [(1, 16, 17), (7, 24, 67), (33, 48, 130), (40, 20, 100), (17, 96, 1000)]


class Made:
    """What the kernel makes of rows and head."""

    def __init__(
        self, x: Tensor, head: Tensor, labels: Tensor, config: HeadConfig = POINTERS, *, store: bool = True,
        programs: int = 3, out_dtype: torch.dtype = torch.float32, **options: Any,
    ) -> None:  # fmt: skip
        self.labels = labels
        width = head.shape[0]
        self.out = torch.full((x.shape[0], -(-width // 32) * 32), torch.nan, dtype=out_dtype)[:, :width]
        sums = torch.full((6, x.shape[0]), torch.nan)
        self.label_logit, self.others, self.total, self.cap_slope, self.entropy, self.rival = sums
        given = {"bias": None, "scale": 1.0, "softcap": None} | options
        slope = None if given["softcap"] is None else self.cap_slope
        launch_head_exponentials_fwd(
            x,
            head,
            self.out if store else None,
            labels,
            *sums[:3],
            slope,
            *sums[4:],
            config=config,
            programs=programs,
            **given,
        )

    def check(self, logits: Tensor, slope: Tensor | None = None, stored: float = 1e-5) -> None:
        """logits: in float64; slope: the softcap's, everywhere."""
        columns = torch.arange(logits.shape[1])
        mine = (self.labels >= 0) & (self.labels < logits.shape[1])
        without = logits.masked_fill(columns == self.labels[:, None], -torch.inf)
        at = self.labels.clamp(0, logits.shape[1] - 1)[:, None]
        label_logit = torch.where(mine, logits.gather(1, at)[:, 0], 0)
        torch.testing.assert_close(self.others.double(), without.logsumexp(1), rtol=1e-6, atol=5e-6)
        torch.testing.assert_close(self.label_logit.double(), label_logit, rtol=1e-6, atol=5e-6)
        entropy = torch.special.entr(without.softmax(1)).sum(1)
        torch.testing.assert_close(self.entropy.double(), entropy, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(self.rival.double(), without.amax(1), rtol=1e-6, atol=5e-6)
        got = self.out.double() / self.total.double()[:, None]
        expected = without.softmax(1) * (1 if slope is None else slope)
        torch.testing.assert_close(got, expected, rtol=stored, atol=1e-7)
        assert not self.out[mine, self.labels[mine]].any()


def problem(n: int, d: int, v: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Labels in the first and the last tile, of other ranks on both sides, and where the last tile is padding."""
    generator = torch.Generator().manual_seed(n)
    x, head = (torch.randn(*shape, generator=generator).mul(d**-0.25).to(dtype) for shape in ((n, d), (v, d)))
    labels = torch.randint(0, v, (n,), generator=generator)
    places = torch.tensor([v - 1, -1, v, v + 9, 0, -(2**33), 2**33 + 1])[:n]
    labels[: places.shape[0]] = places
    return x, head, labels


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_shapes(shape: tuple[int, int, int], config: HeadConfig) -> None:
    x, head, labels = problem(*shape)
    made = Made(x, head, labels, config)
    made.check(x.double() @ head.double().T)
    assert bool((made.total <= 2.0**60).all())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("options", [{"softcap": 5.0}, {"scale": 0.3}, {"softcap": 5.0, "scale": 0.3}], ids=str)
def test_options(config: HeadConfig, options: dict[str, float]) -> None:
    x, head, labels = problem(33, 48, 130)
    bias = torch.linspace(-2, 2, 130)
    raw = (x.double() @ head.double().T + bias.double()) * options.get("scale", 1)
    cap = options.get("softcap")
    logits = raw if cap is None else cap * torch.tanh(raw / cap)
    slope = None if cap is None else 1 - (logits / cap) ** 2
    made = Made(x, head, labels, config, bias=bias, **options)
    made.check(logits, slope)
    if slope is not None:
        mine = (labels >= 0) & (labels < 130)
        at_label = slope.gather(1, labels.clamp(0, 129)[:, None])[:, 0]
        torch.testing.assert_close(made.cap_slope[mine].double(), at_label[mine], rtol=1e-5, atol=1e-6)


def test_sixteen_bit_inputs_and_results() -> None:
    """fp16 stands for bf16, which the interpreter cannot: products are exact, sums fp32, E is rounded at its store."""
    x, head, labels = problem(33, 48, 130, torch.float16)
    labels = labels.clamp(0, 129)
    made = Made(x, head, labels, out_dtype=torch.float16)
    logits = x.double() @ head.double().T
    without = logits.masked_fill(torch.arange(130) == labels[:, None], -torch.inf)
    torch.testing.assert_close(made.others.double(), without.logsumexp(1), rtol=1e-6, atol=2e-6)
    exact = (without - logits.gather(1, labels[:, None]) - 16).exp()
    torch.testing.assert_close(made.out.double(), exact, rtol=2**-10, atol=2**-24)


def test_the_sums_alone() -> None:
    x, head, labels = problem(33, 48, 130)
    whole, alone = Made(x, head, labels), Made(x, head, labels, store=False)
    assert torch.equal(whole.others, alone.others)
    assert bool(alone.out.isnan().all())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("gap", [40.0, 90.0, 3000.0])
def test_a_row_whose_guess_was_too_low_runs_again(gap: float, config: HeadConfig) -> None:
    """The gap is what the largest logit is above the label's: 57 are too many for the sums, 88 for exp."""
    x, head, labels = problem(40, 20, 100)
    labels = labels.clamp(0, 99)
    bias = torch.zeros(100)
    bias[labels[21]] = -gap  # in the second row block; and wherever else that label stands
    made = Made(x, head, labels, config, bias=bias)
    made.check(x.double() @ head.double().T + bias.double())
    low = labels == labels[21]
    assert bool((made.total[low] <= 2.0**60).all())
    if gap > 60:
        assert bool((made.total[low] < 101).all())  # its offset is its largest logit


@pytest.mark.parametrize("word", [5, 31])
def test_the_largest_logit_in_either_half_of_a_tile(word: int) -> None:
    x, head, labels = problem(33, 48, 130)
    labels[labels == word] += 1
    bias = torch.full((130,), -90.0)
    bias[word] = 0
    made = Made(x, head, labels, CONFIGS["halves"], bias=bias)
    made.check(x.double() @ head.double().T + bias.double())
    mine = (labels >= 0) & (labels < 130)
    assert bool((made.total[mine] < 131).all())


def test_only_the_row_blocks_that_need_it_run_again() -> None:
    """Other rows keep their offsets: their sums, and every bit of E, are those of a run without such a row."""
    x, head, labels = problem(40, 20, 100)
    labels = labels.clamp(0, 99)
    before = Made(x, head, labels)
    x[21] -= 80 * head[labels[21]] / head[labels[21]].square().sum()
    after = Made(x, head, labels)
    after.check(x.double() @ head.double().T)
    others = torch.arange(40) != 21
    assert torch.equal(before.out[others], after.out[others])
    assert torch.equal(before.total[others], after.total[others])
    assert after.total[21] < 101


@pytest.mark.parametrize("programs", [1, 2, 7, 1000])
def test_the_same_bits_however_many_programs(programs: int) -> None:
    x, head, labels = problem(40, 20, 100)
    one, other = Made(x, head, labels), Made(x, head, labels, programs=programs)
    for name in ("out", "others", "total", "label_logit"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_more_tiles_than_are_added_up_at_a_time() -> None:
    x, head, labels = problem(3, 8, 2500)
    Made(x, head, labels, POINTERS._replace(block_n=16)).check(x.double() @ head.double().T)


def test_impossible_words_and_labels() -> None:
    x, head, labels = problem(33, 48, 130)
    bias = torch.zeros(130)
    labels[:4] = torch.tensor([9, 3, 9, -4])
    bias[9] = -torch.inf
    made = Made(x, head, labels, bias=bias)
    assert made.label_logit[[0, 2]].tolist() == [-torch.inf] * 2
    without = (x.double() @ head.double().T + bias.double()).masked_fill(
        torch.arange(130) == labels[:, None], -torch.inf
    )
    torch.testing.assert_close(made.others.double(), without.logsumexp(1), rtol=1e-6, atol=5e-6)
    assert not made.out[:, 9].any()
    assert bool(made.total.isfinite().all())


def test_a_row_whose_guess_was_too_high_runs_again() -> None:
    """A label far above all other words; and, where another rank holds the label, a ruled-out word as the guess, with
    nothing but words far below it."""
    x, head, labels = problem(33, 48, 130)
    x[4] = 0  # its label is 0
    bias = torch.zeros(130)
    bias[0] = 300.0
    Made(x, head, labels, bias=bias).check(x.double() @ head.double().T + bias.double())
    bias -= 200
    bias[0] = -torch.inf
    labels[:4] = torch.tensor([-1, -7, 3, -1])
    made = Made(x, head, labels, bias=bias)
    without = (x.double() @ head.double().T + bias.double()).masked_fill(
        torch.arange(130) == labels[:, None], -torch.inf
    )
    torch.testing.assert_close(made.others[:4].double(), without[:4].logsumexp(1), rtol=1e-6, atol=5e-5)


def test_a_nan_is_not_hidden() -> None:
    x, head, labels = problem(33, 48, 130)
    x[17, 5] = torch.nan
    made = Made(x, head, labels)
    assert made.others.isnan().nonzero().flatten().tolist() == [17]


def test_rows_and_heads_with_strides_of_their_own() -> None:
    x, head, labels = problem(33, 48, 130)
    wide_x, wide_head = torch.zeros(33, 80), torch.zeros(130, 64)
    wide_x[:, 16:64], wide_head[:, 8:56] = x, head
    for config in (POINTERS, CONFIGS["descriptors"]):
        Made(wide_x[:, 16:64], wide_head[:, 8:56], labels, config).check(x.double() @ head.double().T)


def test_what_descriptors_cannot_stand_for() -> None:
    described = CONFIGS["descriptors"]
    tensor = torch.zeros(8, 16)
    assert fits(tensor, described)
    assert not fits(tensor.t(), POINTERS)
    for odd in (tensor[:, 1:], torch.zeros(8, 17), tensor[:1].expand(8, 16), tensor.t()):
        assert not fits(odd, described)
        assert fits(odd, POINTERS) is (odd.stride(1) == 1)
    assert head_config(torch.device("cpu"), finished=True).halves
