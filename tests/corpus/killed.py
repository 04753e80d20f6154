"""A run that kills itself at a moment, or prints how many there were: killed.py SOURCE OUT MOMENT."""

import sys

from fastdss.corpus.run import score_dataset

from .fakes import FakeScorer
from .moments import Moments

source, out, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
moments = Moments(last, FakeScorer)
score_dataset(source, out, FakeScorer(), shard_rows=7)
print(moments.passed)
