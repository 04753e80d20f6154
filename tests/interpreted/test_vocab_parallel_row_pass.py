"""The two kernels for a vocabulary split over ranks, on two gloo ranks."""

from pathlib import Path

from tests.loss.test_vocab_parallel import spawn


def test_a_vocabulary_split_over_two_ranks(tmp_path: Path) -> None:
    spawn(tmp_path, "vocabulary", "triton")
