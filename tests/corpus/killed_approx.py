"""An approximated run that kills itself at a moment, or prints how many there were: killed_approx.py OUT MOMENT."""

import sys
from pathlib import Path

from fastdss.corpus.scorer import StarScorer

from .moments import Moments
from .test_approximate import approximated, scorer

out, last = Path(sys.argv[1]), int(sys.argv[2])
moments = Moments(last, StarScorer)
approximated(out, scorer())
print(moments.passed)
