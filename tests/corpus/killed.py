"""A run that kills itself with SIGKILL at its n-th dangerous moment: python killed.py SOURCE OUT MOMENT [--count].

Moments are just before and after every flush to disk, rename and batch of scores. With --count it lives and prints how
many there were.
"""

import os
import signal
import sys

from fastdss.corpus.run import score_dataset

from .fakes import FakeScorer

source, out, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
passed = 0


def moment():
    global passed
    passed += 1
    if passed == last:
        os.kill(os.getpid(), signal.SIGKILL)


def around(function):
    def watched(*args, **kwargs):
        moment()
        result = function(*args, **kwargs)
        moment()
        return result

    return watched


os.fsync, os.replace = around(os.fsync), around(os.replace)
FakeScorer.score_rows = around(FakeScorer.score_rows)
score_dataset(source, out, FakeScorer(), shard_rows=7)
print(passed)
