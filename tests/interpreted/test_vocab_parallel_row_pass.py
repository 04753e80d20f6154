"""The two kernels for a vocabulary split over ranks, on two gloo ranks."""

from tests.loss.test_vocab_parallel import spawn


def test_a_vocabulary_split_over_two_ranks() -> None:
    spawn("vocabulary", "triton")
