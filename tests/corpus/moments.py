"""Where a run may die: just before and after every flush to disk, every rename and every batch of scores."""

import os
import signal


class Moments:
    """Watches this process, which kills itself with SIGKILL at the moment number ``last`` (0: never)."""

    def __init__(self, last, scorer):
        self.last, self.passed = last, 0
        os.fsync, os.replace = self._around(os.fsync), self._around(os.replace)
        scorer.score_rows = self._around(scorer.score_rows)

    def _pass(self):
        self.passed += 1
        if self.passed == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def _around(self, function):
        def watched(*args, **kwargs):
            self._pass()
            result = function(*args, **kwargs)
            self._pass()
            return result

        return watched
