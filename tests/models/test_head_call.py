"""The head's forward is swapped for the time of a call, and is the head's own again after it."""

import contextlib
import threading

import torch

from fastdss.train.enable import enable_dss
from tests.support.tiny_models import own_logits, tiny_batch, tiny_model


def test_two_threads_in_one_model_are_refused_and_it_stays_whole():
    """The one that ended last put back the other's forward, after which the model made no logits any more."""
    model, batch = enable_dss(tiny_model()), tiny_batch()
    expected, logits = model(**batch).loss.item(), own_logits(model, batch)
    met, found = threading.Barrier(2), []

    def both_within(*_):
        with contextlib.suppress(threading.BrokenBarrierError):
            met.wait(5)

    def run():
        try:
            found.append(model(**batch).loss.item())
        except ValueError as error:
            met.abort()
            found.append(str(error))

    hook = model.model.embed_tokens.register_forward_hook(both_within)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    (refused,) = (one for one in found if isinstance(one, str))
    assert "one at a time" in refused
    assert expected in found
    assert torch.equal(own_logits(model, batch), logits)
