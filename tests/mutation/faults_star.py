"""Faults in prefix trees, packing, attention, verdicts, boundaries, alignment, injection and streaming."""

from __future__ import annotations

from .fault import Fault

EXACT = "tests/star/test_exact.py"
FP32 = f"{EXACT} -k fp32_scores"
INJECTION = "tests/guards/test_injection.py"
INPUTS = "tests/star/test_inputs.py"
ALIGN = "tests/star/test_align.py"
COMBINE = "tests/star/test_combine.py"
STREAM = "tests/star/test_stream.py"
BOUNDARIES = "tests/chat/test_boundaries.py"
GROUPS = f"{EXACT} -k many_groups"
BUDGET = f"{EXACT} -k packing_budget"
PLANS = "tests/prefix/test_packed_attention.py"
TREE, PACKING, MASKS = "fastdss/prefix/tree.py", "fastdss/prefix/packing.py", "fastdss/prefix/attention.py"
RUNS, CHAT, WEIGHTS = "fastdss/prefix/packed_attention.py", "fastdss/chat/encoder.py", "fastdss/star/align.py"
CUTTING = "fastdss/chat/boundaries.py"
SCORED, SCORES = "fastdss/star/scored.py", "fastdss/star/scores.py"
ANSWERS = "fastdss/guards/answers.py"
GUARD, SCORING = "fastdss/guards/guard.py", "fastdss/star/scoring.py"

TREES = [
    Fault("prefix tree", TREE, "return int(differs.argmax()) if", "return int(differs.argmax()) + 1 if", FP32),
    Fault("prefix tree", TREE, "trunk = max(renderings, key=len)", "trunk = renderings[0]", FP32),
    Fault("prefix tree", TREE, "min(ends, default=len(self.trunk))", "len(self.trunk)",
          "tests/hardening/test_trees.py -k inside_another"),
    Fault("position ids", "fastdss/prefix/engine.py", "range(segment.start, segment.start + len(segment.ids))",
          "range(len(segment.ids))", FP32),
    Fault("branch logits", "fastdss/prefix/engine.py", "rows += [left + at for at, _ in segment.verdicts]",
          "rows += [left + at - 1 for at, _ in segment.verdicts]", FP32),
    Fault("branch logits", "fastdss/prefix/engine.py",
          "groups = [part for group in groups for part in group.split(store_tokens)]", "groups.pop(0)",
          f"{EXACT} -k halves_the_budget"),
    Fault("branch logits", "fastdss/models/causal_lm.py", "self.weight if rows is None else self.weight[rows]",
          "self.weight if rows is None else self.weight[: len(rows)]", FP32),
    Fault("branch logits", "fastdss/models/causal_lm.py", "linear(hidden, weight, bias) * self.logit_scale",
          "linear(hidden, weight, bias)", f"{EXACT} -k 'fp32_scores and granite'"),
]  # fmt: skip

MASKS_AND_PACKING = [
    Fault("masks", MASKS, "hidden = distance < 0 if", "hidden = distance < -1 if", FP32),
    Fault("masks", MASKS, "(distance < 0) | (distance >= window)", "(distance < 0) | (distance > window)",
          f"{EXACT} -k 'fp32_scores and mistral'"),
    Fault("masks", MASKS, "if window is None and n == 1:", "if n == 1:", BUDGET),
    Fault("masks", MASKS, "cut = band[:n, offset", "cut = band[1 : n + 1, offset", FP32),
    Fault("attention", MASKS, "scores = softcap * torch.tanh(", "scores = torch.tanh(",
          f"{EXACT} -k 'fp32_scores and gemma2'"),
    Fault("attention", MASKS, "for base in (segment.base, *segment.copies):", "for base in (segment.base,):", FP32),
    Fault("attention", MASKS, "                for base in bases:\n", "                for base in bases[:1]:\n", FP32),
    Fault("attention", MASKS, "if unknown or attention_mask is not None or dropout:", "if False:",
          f"{INPUTS} -k does_not_know"),
    Fault("attention", MASKS, "if layer in fastdss_plan.windows:", "if False:",
          "tests/guards/test_refused.py -k two_att"),
    Fault("attention", "fastdss/prefix/engine.py", "if window and last >= window and any(slides):", "if False:",
          "tests/guards/test_refused.py -k window"),
    Fault("packing", TREE, "(-self.starts[k], self.tails[k])", "(self.starts[k], self.tails[k])", FP32),
    Fault("packing", TREE, "if start == before[0] else 0", "", "tests/hardening/test_trees.py"),
    Fault("packing", TREE, "shared = min(shared, len(tail) - 1)", "shared = min(shared, len(tail))",
          "tests/hardening/test_trees.py"),
    Fault("packing", PACKING, "[(at - left, k) for at, k in places", "[(at, k) for at, k in places",
          BUDGET),
    Fault("packing", PACKING, "            room -= len(piece.ids)", "            room -= 0",
          f"{EXACT} -k halves_the_budget"),
    Fault("packing", PACKING, "min(tree.first_verdict, len(tree.trunk) - 1)", "len(tree.trunk) - 1",
          "tests/hardening/test_trees.py -k inside_another"),
    Fault("packing", PACKING, "groups[-1].first_score.append(first)",
          "groups[-1].first_score.append(sum(t.num_prefixes for t in groups[-1].trees[:-1]))", GROUPS),
    Fault("packing", RUNS, "after[after == before] = -1", "after[:] = -1", f"{PLANS} -k 'micro_batches or any_order'"),
    Fault("packing", RUNS, "if any(seen.get(base, 0) > run.start for base in run.bases):", "if False:",
          f"{PLANS} -k any_order"),
]  # fmt: skip

VERDICTS = [
    Fault("temperature", ANSWERS, "columns] / temperature, dim=-1)", "columns] * temperature, dim=-1)",
          f"{COMBINE} -k sharpening"),
    Fault("temperature", SCORING, "_RELEASED_TEMPERATURE = 0.2 * 1.2", "_RELEASED_TEMPERATURE = 0.2",
          f"{COMBINE} -k papers_preset"),
    Fault("verdict", GUARD, "return score.masked_fill(~torch.isfinite(rows).all((-1, -2, -3)), float(\"nan\"))",
          "return score", "tests/hardening/test_verdicts.py"),
    Fault("verdict", ANSWERS, "dict.fromkeys(other, spec.other_weight)", "dict.fromkeys(other, 1.0)",
          "tests/guards/test_specs.py -k third_verdict"),
    Fault("verdict", ANSWERS, "(len(found) > 1 and not spec.split_words)", "False",
          f"{INPUTS} -k verdict_words"),
    Fault("verdict", SCORING, "Flag.FAILED: not bool(torch.isfinite(scores).all())",
          "Flag.FAILED: not bool(torch.isfinite(scores).any())", "tests/hardening/test_verdicts.py"),
    Fault("verdict", SCORING, "else stacked.amin(0)", "else stacked.amax(0)", f"{COMBINE} -k averaged"),
    Fault("verdict", SCORED, "if self.complete else float(\"nan\")", "if self.complete else 1.0",
          f"{INPUTS} -k longer_than_the_context"),
    Fault("verdict", SCORES, "bad = [i for i, item in enumerate(self) if item.failed]", "bad = []",
          f"{INPUTS} -k nan_logits"),
]  # fmt: skip

TEXT = [
    Fault("boundaries", CUTTING, "spans)[every - 1 :: every]", "spans)[::every]", BOUNDARIES),
    Fault("stream", CUTTING, "ends[every - 1 :: every]", "ends[::every]",
          f"{STREAM} -k equals_the_batch"),
    Fault("boundaries", CUTTING, "[*cuts, len(response)]", "cuts", BOUNDARIES),
    Fault("boundaries", CUTTING, "words[bisect_right(words, end) - 1]", "end", BOUNDARIES),
    Fault("injection", CHAT, "            position = match.start() + 1\n", "            position = match.end()\n",
          f"{INJECTION} -k stay_text"),
    Fault("injection", CHAT, "[[index for index in row if index != dropped] for row in rows]", "rows",
          f"{INJECTION} -k hostile_text"),
    Fault("injection", CHAT, "twin.add_tokens(AddedToken(mark, normalized=False, special=True), special_tokens=True)",
          "pass", f"{INJECTION} -k stay_text"),
    Fault("injection", CHAT, "len(text) > 1 and not _is_blank(text)", "len(text) > 1",
          "tests/guards/test_refused.py -k blanks"),
    Fault("alignment", CHAT, "offsets.append((start - marks, end - marks))", "offsets.append((start, end))",
          "tests/hardening/test_seams.py -k broken_control"),
    Fault("injection", CHAT, "if found != expected:", "if found < expected:",
          f"{INJECTION} -k survive"),
    Fault("injection", CHAT, "if role not in _ROLES:", "if False:", f"{INJECTION} -k role"),
    Fault("injection", GUARD, "re.IGNORECASE | re.MULTILINE", "re.MULTILINE", f"{INJECTION} -k delimiters"),
    Fault("alignment", WEIGHTS, "last = bisect_left(judged.ends, end)", "last = bisect_right(judged.ends, end)", ALIGN),
    Fault("alignment", WEIGHTS, "scores[-1] if judged.complete else 0.0", "scores[-1]",
          f"{INPUTS} -k longer_than_the_context"),
    Fault("alignment", WEIGHTS, "            return 0.0\n", "            return scores[-1]\n",
          f"{ALIGN} -k unseen"),
    Fault("alignment", WEIGHTS, "else slice(length - self.max_length, length)", "else slice(self.max_length)",
          f"{ALIGN} -k truncation"),
    Fault("alignment", "fastdss/chat/policy.py", "found.at + skipped", "found.at",
          "tests/hardening/test_seams.py"),
    Fault("alignment", WEIGHTS, "reached = max(reached, end)", "reached = end",
          "tests/hardening/test_properties.py -k alignment",
          "a precaution: none of 24,000 random texts under 8 tokenizers has an end before an earlier one"),
    Fault("stream", CUTTING, "if unit == \"word\" and begun and not begun[-1].isspace():", "if False:",
          f"{STREAM} -k equals_the_batch"),
    Fault("stream", "fastdss/star/stream.py", "self._store.resized(self._store.capacity)", "self._store",
          "tests/hardening/test_seams.py"),
    Fault("stream", "fastdss/star/stream.py", "self._ids = ids[:start]  #", "self._ids = ids  #",
          "tests/hardening/test_seams.py"),
]  # fmt: skip

FAULTS = [*TREES, *MASKS_AND_PACKING, *VERDICTS, *TEXT]
