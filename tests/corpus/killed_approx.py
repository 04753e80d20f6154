"""An approximated run that kills itself at its n-th dangerous moment: python killed_approx.py OUT MOMENT.

Moments are just before and after every flush to disk, rename and batch of scores.
"""

import os
import signal
import sys
from pathlib import Path

from fastdss.corpus.scorer import StarScorer

from .test_approximate import approximated, scorer

out, last = Path(sys.argv[1]), int(sys.argv[2])
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
StarScorer.score_rows = around(StarScorer.score_rows)
approximated(out, scorer())
print(passed)
