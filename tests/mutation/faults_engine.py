"""Faults in streams, slots, rendering ahead, and attention by flash-attn."""

from __future__ import annotations

from .fault import Fault

EXACT = "tests/star/test_exact.py -k fp32_scores"
STREAM, STREAMS = "tests/star/test_stream.py", "tests/star/test_streams.py"
GROWN = "tests/prefix/test_growing.py"
IN_USE, USED = "fastdss/prefix/in_use.py", "tests/prefix/test_in_use.py"
GROWING, SLOTS, STREAMING = "fastdss/prefix/growing.py", "fastdss/prefix/slots.py", "fastdss/star/stream.py"
SLOTTED, SEAMS = "tests/prefix/test_slots.py", "tests/hardening/test_seams.py"
SETTING = "fastdss/upstream/process.py"
AHEAD, FOREST, AHEADS = "fastdss/star/ahead.py", "fastdss/star/forest.py", "tests/star/test_ahead.py"
SCORING, ENGINE = "fastdss/star/scoring.py", "fastdss/prefix/engine.py"
FLASH, FLASHING = "fastdss/prefix/flash_attention.py", "tests/star/test_flash.py"
COLLATOR, FLAT = "fastdss/train/collator.py", "tests/train/test_flash_padding_free.py"

MANY_STREAMS = [
    Fault("stream", GROWING, "self._held[owner] = self._held[owner][:certain]", "pass", f"{GROWN} -k lost_forward"),
    Fault("stream", GROWING, "certain = min(certain, start)", "certain = start", f"{GROWN} -k lost_forward"),
    Fault("stream", GROWING, "min(shared_length(last, ids), len(ids) - 1)", "shared_length(last, ids)",
          f"{GROWN} -k did_not_change"),
    Fault("stream", GROWING, "0 if held is None else len(held)", "0", f"{GROWN} -k moves"),
    Fault("stream", SLOTS, "self.reserve(to, size, 0)\nsource, target = (self.base(owner), self.base(to))",
          "self._places[to] = self._places[owner]\nsource, target = (self.base(owner), self.base(to))", SEAMS),
    Fault("stream", SLOTS, "at - end >= room", "at >= end", f"{STREAMS} -k fp32"),
    Fault("stream", SLOTS, "all(base + room <= at or at + size <= base for at, size in others)", "True", SLOTTED),
    Fault("stream", SLOTS, "kept and new != base", "False", SLOTTED),
    Fault("stream", STREAMING, "{stream: scores.get(stream, []) for stream in named if stream not in failed}",
          "{stream: scores.get(stream, []) for stream in named}", f"{STREAMS} -k leaves_the_others"),
    Fault("stream", STREAMING, "for stream in ended:\n    self.forget(stream)", "pass", f"{STREAMS} -k place_is_free"),
]  # fmt: skip

MODELS_IN_USE = [
    Fault("in use", IN_USE, "_locks.setdefault(body, (RLock(), os.getpid()))", "(RLock(), os.getpid())",
          f"{USED} -k another_thread"),
    Fault("in use", IN_USE, "module.training = True", "module.training = model.training", f"{USED} -k its_mode"),
    Fault("in use", "fastdss/prefix/attention.py", "attentions_of(model.config)", "NAME", f"{USED} -k as_it_was"),
    Fault("in use", ENGINE, "in_use(model)", "torch.inference_mode()", f"{USED} -k another_thread",
          within="reference_logits"),
    Fault("in use", ENGINE, "(id(p), version(p), p.dtype, p.device)", "(id(p), version(p))", f"{USED} -k changes",
          within="fingerprint"),
    Fault("in use", ENGINE, "autocast_dtype(next(body.parameters()).device)", "None",
          f"{USED} -k autocast", within="fingerprint"),
    Fault("in use", ENGINE, "adapters_in_use(body)", "None", f"{USED} -k switched_off", within="fingerprint"),
    Fault("in use", ENGINE, "in_use(model)", "torch.inference_mode()", f"{USED} -k switched_off",
          within="Runner.read_head"),
    Fault("in use", GROWING, "self._runner.read_head", "(lambda model: None)", f"{USED} -k switched_off"),
    Fault("in use", GROWING, "fingerprint(self._runner.body) != self._fingerprint", "False", f"{USED} -k changes"),
    Fault("in use", GROWING, "self._held.pop(owner, None)", "self._held.get(owner)", f"{USED} -k could_not_move",
          within="GrowingTexts._make_room"),
]  # fmt: skip

RUN_AHEAD = [
    Fault("run ahead", AHEAD, "_raise_first(futures[k:])\nyield self._timed(future.result)",
          "yield self._timed(future.result)", f"{AHEADS} -k error_is"),
    Fault("run ahead", AHEAD, "pool.shutdown", "(lambda wait, cancel_futures: pool.shutdown(wait=wait))",
          f"{AHEADS} -k leaving_early"),
    Fault("run ahead", SETTING, "self._within -= 1\nif not self._within:\n    self._set(self._before)",
          "self._within -= 1", f"{AHEADS} -k error_is"),
    Fault("run ahead", SETTING, "self._within -= 1\nif not self._within:\n    self._set(self._before)",
          "self._set(self._before)", f"{USED} -k whichever"),
    Fault("run ahead", FOREST, "full and turn.judged.row != slices[-1][-1].judged.row", "full",
          f"{AHEADS} -k one_slice"),
    Fault("run ahead", SCORING, "[prompts[len(kept) + i] for i in first]", "[prompts[i] for i in first]",
          f"{AHEADS} -k one_number"),
    Fault("run ahead", SCORING, "report(forest.cut)\nkept += forest.kept", "kept += forest.kept",
          f"{AHEADS} -k depend_on_the_slices"),
    Fault("run ahead", ENGINE, "places += order", "places += sorted(order)", EXACT),
    Fault("run ahead", ENGINE, "hidden[0, read_at.to(hidden.device)]", "hidden[0, read_at[read_at >= 0]]",
          f"{AHEADS} -k waits_for"),
]  # fmt: skip

TWO_CALLS = [
    Fault("flash", FLASH, "torch.sigmoid(kept_lse - own_lse)", "torch.sigmoid(own_lse - kept_lse)",
          f"{FLASHING} -k rounds_once"),
    Fault("flash", FLASH, "alone is not None", "False", f"{FLASHING} -k empty_slot"),
    Fault("flash", FLASH, "kept.masked_fill(alone, 0.0)", "kept", f"{FLASHING} -k empty_slot"),
    Fault("flash", FLASH, "kept, own = (kept.to(dtype), own.to(dtype))", "pass", f"{FLASHING} -k rounds_once"),
    Fault("flash", FLASH,
          "varlen.varlen_attn(q, k, v, part.cuts, part.cuts, *longest, window_size=(-1, 0), **how)",
          "varlen.varlen_attn(q, k, v, part.cuts, part.cuts, *longest, **how)", f"{FLASHING} -k any_micro_batch"),
    Fault("flash", FLASH, "np.array([run.start for run in wave.runs])",
          "np.array([run.start + 1 for run in wave.runs])",
          f"{FLASHING} -k any_micro_batch"),
    Fault("flash", FLASH, "np.array([*lefts, wave.runs[-1].right]) - lefts[0]",
          "np.array([*lefts, wave.runs[-1].right])", f"{FLASHING} -k any_micro_batch"),
    Fault("flash", FLASH, "out[here] = _attend_part(part, q[here], k[here], v[here], store, scaling)\n"
          "write(store, (key[0], value[0]), to_later, source_later)",
          "out[here] = _attend_part(part, q[here], k[here], v[here], store, scaling)",
          f"{FLASHING} -k any_micro_batch"),
    Fault("flash", FLASH, "window is not None and window < last", "False", f"{FLASHING} -k refused"),
    Fault("flash", FLASH, "{'softcap': softcap, 'chunks': chunk, 'sinks': sinks}",
          "{'softcap': softcap, 'chunks': chunk}", f"{FLASHING} -k refused"),
    Fault("flash", "fastdss/prefix/attention.py", "value.new_zeros(value.shape[1], self.capacity, value.shape[3])",
          "value.new_empty(value.shape[1], self.capacity, value.shape[3])", f"{FLASHING} -k never_written"),
    Fault("flash", COLLATOR, "ends.to(torch.int32)", "ends", FLAT),
    Fault("flash", COLLATOR, "starts = ends.to(torch.int32)", "starts = ends.to(torch.int32) + 1", FLAT),
]  # fmt: skip

FAULTS = [*MANY_STREAMS, *MODELS_IN_USE, *RUN_AHEAD, *TWO_CALLS]
