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
    Fault("prefix tree", TREE, "int(differs.argmax())", "int(differs.argmax()) + 1", FP32, within="shared_length"),
    Fault("prefix tree", TREE, "max(renderings, key=len)", "renderings[0]", FP32, within="build_tree"),
    Fault("prefix tree", TREE, "min(ends, default=len(self.trunk))", "len(self.trunk)",
          "tests/hardening/test_trees.py -k inside_another", within="PrefixTree.first_verdict"),
    Fault("position ids", "fastdss/prefix/engine.py", "range(segment.start, segment.start + len(segment.ids))",
          "range(len(segment.ids))", FP32, within="Runner.run"),
    Fault("branch logits", "fastdss/prefix/engine.py", "[left + at for at, _ in segment.verdicts]",
          "[left + at - 1 for at, _ in segment.verdicts]", FP32, within="Runner.run"),
    Fault("branch logits", "fastdss/prefix/engine.py",
          "groups = [part for group in groups for part in group.split(store_tokens)]", "groups.pop(0)",
          f"{EXACT} -k halves_the_budget", within="tree_logits"),
    Fault("branch logits", "fastdss/models/causal_lm.py", "self.weight[rows]", "self.weight[:len(rows)]", FP32,
          within="LMHead.logits"),
    Fault("branch logits", "fastdss/models/causal_lm.py",
          "product * self.logit_scale", "product", f"{EXACT} -k 'fp32_scores and granite'", within="LMHead.after_head"),
]  # fmt: skip

MASKS_AND_PACKING = [
    Fault("masks", MASKS, "distance < 0 if window is None else (distance < 0) | (distance >= window)",
          "distance < -1 if window is None else (distance < 0) | (distance >= window)", FP32, within="_band"),
    Fault("masks", MASKS, "distance >= window", "distance > window", f"{EXACT} -k 'fp32_scores and mistral'",
          within="_band"),
    Fault("masks", MASKS, "window is None and n == 1", "n == 1", BUDGET, within="PrefixPlan.band"),
    Fault("masks", MASKS, "band[:n, offset - start:offset + n]", "band[1:n + 1, offset - start:offset + n]", FP32,
          within="PrefixPlan.band"),
    Fault("attention", MASKS, "softcap * torch.tanh(scores / softcap)", "torch.tanh(scores / softcap)",
          f"{EXACT} -k 'fp32_scores and gemma2'", within="softmax_shares"),
    Fault("attention", MASKS, "(segment.base, *segment.copies)", "(segment.base,)", FP32, within="attend_in_order"),
    Fault("attention", MASKS,
          "for base in bases:\n    target[:, base:base + source[:, :size].shape[1]] = source[:, :size]",
          "for base in bases[:1]:\n    target[:, base:base + source[:, :size].shape[1]] = source[:, :size]", FP32,
          within="KVStore.load"),
    Fault("attention", MASKS, "unknown or attention_mask is not None or dropout", "False",
          f"{INPUTS} -k does_not_know", within="prefix_attention"),
    Fault("attention", MASKS, "layer in fastdss_plan.windows", "False", "tests/guards/test_refused.py -k two_att",
          within="prefix_attention"),
    Fault("attention", "fastdss/prefix/engine.py", "window and last >= window and any(slides)", "False",
          "tests/guards/test_refused.py -k window", within="Runner._check_layers"),
    Fault("packing", TREE, "-self.starts[k]", "self.starts[k]", FP32, within="PrefixTree.branches"),
    Fault("packing", TREE, "shared_length(np.asarray(before[1]), np.asarray(tail)) if start == before[0] else 0",
          "shared_length(np.asarray(before[1]), np.asarray(tail))", "tests/hardening/test_trees.py",
          within="PrefixTree.branches"),
    Fault("packing", TREE, "len(tail) - 1", "len(tail)", "tests/hardening/test_trees.py", within="PrefixTree.branches"),
    Fault("packing", PACKING, "(at - left, k)", "(at, k)", BUDGET, within="Segment.cut"),
    Fault("packing", PACKING, "room -= len(piece.ids)", "room -= 0", f"{EXACT} -k halves_the_budget",
          within="micro_batches"),
    Fault("packing", PACKING, "min(tree.first_verdict, len(tree.trunk) - 1)", "len(tree.trunk) - 1",
          "tests/hardening/test_trees.py -k inside_another", within="_limit"),
    Fault("packing", PACKING,
          "for tree, prompt, first in zip(self.trees, self.prompts, self.first_score, strict=True):\n    "
          "need = len(tree.trunk)\n    if not groups or need > room:\n        groups.append(Group([], [], "
          "[]))\n        room = store_tokens\n    groups[-1].trees.append(tree)\n    "
          "groups[-1].prompts.append(prompt)\n    groups[-1].first_score.append(first)\n    room -= need",
          "for tree, prompt, first in zip(self.trees, self.prompts, self.first_score, strict=True):\n    "
          "need = len(tree.trunk)\n    if not groups or need > room:\n        groups.append(Group([], [], "
          "[]))\n        room = store_tokens\n    groups[-1].trees.append(tree)\n    "
          "groups[-1].prompts.append(prompt)\n    groups[-1].first_score.append(sum((t.num_prefixes for t "
          "in groups[-1].trees[:-1])))\n    room -= need", GROUPS, within="Group.split"),
    Fault("packing", RUNS, "after[after == before]", "after[:]", f"{PLANS} -k 'micro_batches or any_order'",
          within="_plan_writes"),
    Fault("packing", RUNS, "any((seen.get(base, 0) > run.start for base in run.bases))", "False",
          f"{PLANS} -k any_order", within="find_waves"),
]  # fmt: skip

VERDICTS = [
    Fault("temperature", ANSWERS, "read / temperature", "read * temperature", f"{COMBINE} -k sharpening",
          within="Answers._value"),
    Fault("temperature", SCORING, "_RELEASED_TEMPERATURE = 0.2 * 1.2", "_RELEASED_TEMPERATURE = 0.2",
          f"{COMBINE} -k papers_preset"),
    Fault("verdict", GUARD, "score.masked_fill(~torch.isfinite(rows).all((-1, -2, -3)), float('nan'))", "score",
          "tests/hardening/test_verdicts.py", within="GuardModel.scores"),
    Fault("verdict", ANSWERS, "spec.other_weight", "1.0", "tests/guards/test_specs.py -k third_verdict",
          within="_compile"),
    Fault("verdict", ANSWERS, "len(found) > 1 and (not spec.split_words)", "False", f"{INPUTS} -k verdict_words",
          within="_ids"),
    Fault("verdict", SCORING, "torch.isfinite(scores).all", "torch.isfinite(scores).any",
          "tests/hardening/test_verdicts.py", within="_flags"),
    Fault("verdict", SCORING, "stacked.amin", "stacked.amax", f"{COMBINE} -k averaged", within="score_turns"),
    Fault("verdict", SCORED, "float('nan')", "1.0", f"{INPUTS} -k longer_than_the_context",
          within="ScoredResponse.final"),
    Fault("verdict", SCORES, "[i for i, item in enumerate(self) if item.failed]", "[]", f"{INPUTS} -k nan_logits",
          within="StarScores.token_weights"),
]  # fmt: skip

TEXT = [
    Fault("boundaries", CUTTING, "_unit_ends(response, unit, spans)[every - 1::every]",
          "_unit_ends(response, unit, spans)[::every]", BOUNDARIES, within="find_ends"),
    Fault("stream", CUTTING, "ends[every - 1::every]", "ends[::every]", f"{STREAM} -k equals_the_batch",
          within="find_settled_ends"),
    Fault("boundaries", CUTTING, "[*cuts, len(response)]", "cuts", BOUNDARIES, within="tidy_ends"),
    Fault("boundaries", CUTTING, "words[bisect_right(words, end) - 1]", "end", BOUNDARIES, within="_moved_back"),
    Fault("injection", CHAT, "position = match.start() + 1", "position = match.end()", f"{INJECTION} -k stay_text",
          within="ChatEncoder._broken"),
    Fault("injection", CHAT, "[[index for index in row if index != dropped] for row in rows]", "rows",
          f"{INJECTION} -k hostile_text", within="ChatEncoder.tokenize"),
    Fault("injection", CHAT, "if mark not in self._marking:\n    twin = copy.deepcopy(self.tokenizer)\n    "
          "twin.add_tokens(AddedToken(mark, normalized=False, special=True), special_tokens=True)\n    "
          "self._marking[mark] = twin",
          "if mark not in self._marking:\n    twin = copy.deepcopy(self.tokenizer)\n    pass\n    "
          "self._marking[mark] = twin", f"{INJECTION} -k stay_text", within="ChatEncoder._with_mark"),
    Fault("injection", CHAT, "len(text) > 1 and (not _is_blank(text))", "len(text) > 1",
          "tests/guards/test_refused.py -k blanks", within="ChatEncoder.__init__"),
    Fault("alignment", CHAT, "(start - marks, end - marks)", "(start, end)",
          "tests/hardening/test_seams.py -k broken_control", within="ChatEncoder.encode_with_offsets"),
    Fault("injection", CHAT, "found != expected", "found < expected", f"{INJECTION} -k survive",
          within="ChatEncoder._check_controls"),
    Fault("injection", CHAT, "role not in ROLES", "False", f"{INJECTION} -k role", within="check_conversation"),
    Fault("injection", GUARD, "re.IGNORECASE | re.MULTILINE", "re.MULTILINE", f"{INJECTION} -k delimiters",
          within="GuardModel._delimiter_pattern"),
    Fault("alignment", WEIGHTS, "bisect_left(judged.ends, end)", "bisect_right(judged.ends, end)", ALIGN,
          within="_weight"),
    Fault("alignment", WEIGHTS, "scores[-1] if judged.complete else 0.0", "scores[-1]",
          f"{INPUTS} -k longer_than_the_context", within="align_conversation"),
    Fault("alignment", WEIGHTS, "if not judged.complete:\n    return 0.0",
          "if not judged.complete:\n    return scores[-1]", f"{ALIGN} -k unseen", within="_weight"),
    Fault("alignment", WEIGHTS, "slice(length - self.max_length, length)", "slice(self.max_length)",
          f"{ALIGN} -k truncation", within="AlignOptions.kept"),
    Fault("alignment", "fastdss/chat/policy.py", "found.at + skipped", "found.at", "tests/hardening/test_seams.py",
          within="PolicyChat._written"),
    Fault("alignment", WEIGHTS, "max(reached, end)", "end", "tests/hardening/test_properties.py -k alignment",
          "a precaution: none of 24,000 random texts under 8 tokenizers has an end before an earlier one",
          within="align_conversation"),
    Fault("stream", CUTTING, "unit == 'word' and begun and (not begun[-1].isspace())", "False",
          f"{STREAM} -k equals_the_batch", within="find_settled_ends"),
]  # fmt: skip

FAULTS = [*TREES, *MASKS_AND_PACKING, *VERDICTS, *TEXT]
