"""Faults in the row formulas, the chunk driver, the ops and the two Triton kernels."""

from __future__ import annotations

from .fault import Fault

OBJECTIVE, CHUNKED, INPUTS = "fastdss/loss/objective.py", "fastdss/loss/chunked.py", "fastdss/loss/inputs.py"
SHARD, GRADIENT, GEMM = "fastdss/loss/vocab_shard.py", "fastdss/loss/row_gradient.py", "fastdss/loss/gemm.py"
FILTER, FILTERED = "fastdss/loss/column_filter.py", "tests/loss/test_column_filter.py"
ROW_PASS, ATTENTION = "kernels/row_pass.py", "kernels/prefix_attention.py"
LABEL_ROWS, FINISH = "kernels/label_rows.py", "tests/interpreted/test_gradient_kernels.py"
EXACT = "tests/loss/test_exact.py"
DSS = f"{EXACT} -k test_dss_loss"
CHUNKS = f"{EXACT} -k test_shapes_and_chunks"
BAD = "tests/loss/test_bad_inputs.py"
ENGINE = "tests/loss/test_engine.py"
RANKS = "tests/loss/test_vocab_parallel.py"
ROWS = "tests/interpreted/test_row_pass.py"
KEYS = "tests/interpreted/test_prefix_attention.py"

ROW_FORMULAS = [
    Fault("row formulas", OBJECTIVE, "return d, torch.ones_like(d)", "return d, torch.zeros_like(d)", DSS),
    Fault("row formulas", OBJECTIVE, "return d * d * 0.5, d", "return d * d * 0.5, 2 * d", DSS),
    Fault(
        "row formulas", OBJECTIVE, "torch.expm1(-d) + d, -torch.expm1(-d)", "torch.expm1(-d) + d, torch.expm1(-d)", DSS
    ),
    Fault("row formulas", OBJECTIVE, "a * (1 + 2 * o.z_loss * stats.lse)", "a * (1 + o.z_loss * stats.lse)", DSS),
    Fault("row formulas", OBJECTIVE, "label = a * (o.label_smoothing - 1)", "label = -a", DSS),
    Fault("row formulas", OBJECTIVE, "-a * (o.label_smoothing / vocab_size)", "-a * o.label_smoothing", DSS),
    Fault("row formulas", OBJECTIVE, 'prob = prob + b if o.kl == "forward" else prob', "prob = prob", DSS),
    Fault("row formulas", OBJECTIVE, 'sign = 1 if o.kl == "reverse" else -1', "sign = 1", DSS),
    Fault("row formulas", OBJECTIVE, "jacobian = (1 - z.square())", "jacobian = (1 - z)", DSS),
    Fault("row formulas", OBJECTIVE, "        prob * s,\n", "        prob,\n", DSS),
    Fault("row formulas", OBJECTIVE, "label_logit = stats.label_logit.masked_fill(~in_vocab, math.nan)",
          "label_logit = stats.label_logit", f"{BAD} -k under_compile"),
    Fault("row formulas", OBJECTIVE, "rows.ref_logprobs).masked_fill(b == 0, 0)", "rows.ref_logprobs)",
          f"{BAD} -k nan_counts"),
    Fault("row formulas", OBJECTIVE, "(z if reverse else z_ref) == -math.inf",
          "(z if reverse else z_ref) == math.inf", f"{EXACT} -k impossible_token"),
    Fault("row formulas", OBJECTIVE, "block = slice(start, start + step)", "block = slice(start, start + step - 1)",
          "tests/hardening/test_extremes.py -k vocabulary"),
]  # fmt: skip

COMPACTION_AND_CHUNKS = [
    Fault("compaction", CHUNKED, "unused = None if plan.trusted else inputs.kl_weight[:with_ref] == 0",
          "unused = None if dead is None else dead[:with_ref]", "tests/loss/test_engine.py -k weight_is_zero"),
    Fault("compaction", CHUNKED, "live = has_kl | (ce_weight != 0)", "live = ce_weight != 0", DSS),
    Fault("compaction", CHUNKED, "torch.where(has_kl, 0, torch.where(live, 1, 2))", "torch.where(live, 0, 2)", DSS),
    Fault("compaction", CHUNKED, "return x if dead is None else torch.where(dead.unsqueeze(1), 0, x)", "return x",
          f"{BAD} -k nan_counts"),
    Fault("compaction", CHUNKED, "ce if dead is None else ce.masked_fill(dead, 0)", "ce",
          f"{ENGINE} -k live_rows_and_no_compaction"),
    Fault("compaction", CHUNKED, "new = call.hidden.new_zeros if plan.count == 0 or plan.index is not None else",
          "new = call.hidden.new_empty if plan.count else", f"{ROWS} -k test_shapes"),
    Fault("compaction", CHUNKED, "d_hidden.index_copy_(0, rows, d_x)", "d_hidden[: len(d_x)] = d_x", DSS),
    Fault("chunk loop", CHUNKED, "for start in range(0, self.count, size):",
          "for start in range(0, max(self.count - 1, 1), size):", CHUNKS),
    Fault("chunk loop", CHUNKED, "min(max(self.kl_rows - start, 0), span.stop - start)",
          "min(self.kl_rows, span.stop - start)", "tests/hardening/test_seams.py"),
    Fault("chunk loop", CHUNKED, "else slice(span.start, span.start + with_ref)", "else slice(0, with_ref)",
          f"{ENGINE} -k live_rows_and_no_compaction"),
    Fault("dW accumulation", GEMM, "beta=0 if first else 1", "beta=0", CHUNKS),
    Fault("dW accumulation", GRADIENT, "d_bias += self.dz.sum(dim=0, dtype=d_bias.dtype)",
          "d_bias.copy_(self.dz.sum(dim=0, dtype=d_bias.dtype))", CHUNKS),
    Fault("dW accumulation", GRADIENT, "self._return_lost(d_head, x, scatter=True)", "pass",
          f"{EXACT} -k as_on_a_gpu"),
    Fault("dX", GRADIENT, "self._return_lost(d_x, head, scatter=False)", "pass", f"{EXACT} -k as_on_a_gpu"),
    Fault("dX", GRADIENT, "target.addcmul_(source[self.labels].to(target.dtype)",
          "target.addcmul_(source[: len(self.labels)].to(target.dtype)", f"{EXACT} -k as_on_a_gpu"),
    Fault("dX", GRADIENT, "exact - exact.to(head.dtype).to(exact.dtype))", "torch.zeros_like(exact))",
          f"{EXACT} -k sixteen_bit_inputs"),
    Fault("column filter", FILTER, "(dz.amin(dim=0) >= -self.threshold)", "(dz.amin(dim=0) <= 1)", FILTERED),
    Fault("column filter", FILTER, "kept = ~((dz.amax(dim=0) <= self.threshold) &",
          "kept = ((dz.amax(dim=0) > self.threshold) |", f"{FILTERED} -k nan"),
    Fault("column filter", FILTER, ".masked_fill_(kept, 0)", "", FILTERED),
    Fault("column filter", FILTER, "left *= size / (left @ left)", "left *= size * (left @ left)", FILTERED),
    Fault("column filter", FILTER, "return ColumnFilter(call.grad_tol * largest)",
          "return ColumnFilter(call.grad_tol * torch.ones_like(largest))", f"{FILTERED} -k scale_of_the_weights"),
    Fault("column filter", FILTER, "d_hidden[dropped.rows] += torch.outer(dropped.left, mean)", "pass", FILTERED),
    Fault("column filter", FILTER, "d_head.addmm_(right.t(),", "d_head.addmm_(0 * right.t(),", FILTERED),
    Fault("column filter", GRADIENT, "d_head.index_add_(0, part, product)", "d_head[part] = product",
          f"{FILTERED} -k every_option"),
    Fault("column filter", GRADIENT, "            d_x.zero_()\n        for part", "            pass\n        for part",
          f"{FILTERED} -k every_option"),
    Fault("column filter", CHUNKED, "fills = plan.count > 0 and filtered is None", "fills = plan.count > 0",
          f"{FILTERED} -k every_option"),
    Fault("vocab parallel", SHARD, "drawn_from = shares[0 if reverse else -1]", "drawn_from = shares[0]", RANKS),
    Fault("vocab parallel", SHARD, "VocabShard(group.rank() * width,", "VocabShard(0,", RANKS),
    Fault("vocab parallel", CHUNKED, "if d_hidden is not None and shard.group is not None:", "if False:", RANKS),
    Fault("vocab parallel", SHARD, "shares = (lses - peaks).exp()", "shares = torch.ones_like(lses)", RANKS),
    Fault("vocab parallel", OBJECTIVE, "share = (local.lse - stats.lse).exp()", "share = torch.ones_like(local.lse)",
          RANKS),
]  # fmt: skip

OPS_AND_ARGUMENTS = [
    Fault("ops", "fastdss/loss/ops.py", "ce_weight=times(call.ce_weight, grad)", "ce_weight=call.ce_weight",
          f"{EXACT} -k reductions"),
    Fault("ops", "fastdss/loss/ops.py", "torch.mul(gradient, factor,", "torch.mul(gradient, factor.abs(),",
          f"{EXACT} -k reductions"),
    Fault("ops", "fastdss/loss/ops.py", "    if torch.is_grad_enabled():\n", "    if False:\n",
          f"{ENGINE} -k double_backward"),
    Fault("weights", INPUTS, "torch.where(counts, (1 - weight) * kl_scale, 0), counts",
          "torch.where(counts, 1 - weight, 0), counts", DSS),
    Fault("weights", INPUTS, "count = self.counts.sum()", "count = (self.ce_weight != 0).sum()", DSS),
    Fault("weights", INPUTS, "F.pad(x[..., 1:], (0, 1), value=fill)", "F.pad(x[..., :-1], (1, 0), value=fill)",
          f"{ENGINE} -k shift_pairs"),
    Fault("weights", INPUTS, "wrong = (weight != 0) & (seen != 1)", "wrong = (weight != 0) & (seen > 1)",
          "tests/hardening/test_silent_errors.py -k rows_of_another_batch"),
    Fault("weights", INPUTS, "kl_rows if objective.full_kl or isinstance(reference, HeadReference) else -1",
          "kl_rows if objective.full_kl else -1", f"{BAD} -k without_kl_scale"),
    Fault("weights", INPUTS, "logprobs.to(self.ce_weight.dtype).contiguous()", "logprobs.to(self.ce_weight.dtype)",
          f"{ROWS} -k strided"),
    Fault("weights", INPUTS, "self.ce_weight.dtype, non_blocking=True).reshape(())",
          "self.ce_weight.dtype, non_blocking=True)", f"{BAD} -k num_items_in_batch"),
    Fault("reference", "fastdss/loss/functional.py", "logit_scale=o.ref_logit_scale, softcap=o.ref_softcap",
          "logit_scale=o.logit_scale, softcap=o.softcap",
          "tests/hardening/test_properties.py -k reference_of_label_forms"),
]  # fmt: skip

TRITON_ROW_PASS = [
    Fault("Triton row pass", ROW_PASS, "columns = (last - i) * BLOCK_V", "columns = i * BLOCK_V",
          f"{ROWS} -k narrower"),
    Fault("Triton row pass", CHUNKED, ".view(dtype)[:, stride : stride + logits.shape[1]]",
          ".view(dtype)[:, : logits.shape[1]]", f"{ROWS} -k narrower"),
    Fault("Triton gradients", LABEL_ROWS, "tl.atomic_add(there, term,", "tl.store(there, term, mask=mask)  # (",
          FINISH),
    Fault("Triton gradients", LABEL_ROWS, "to, of = label, row", "to, of = row, row", FINISH),
    Fault("Triton gradients", "kernels/scale.py", "inside = at < count", "inside = at < count - 1", FINISH),
    Fault("Triton row pass", "kernels/row_pass.py", "is_label = mask & (columns == local_label)",
          "is_label = columns == local_label", f"{ROWS} -k another_rank"),
    Fault("Triton row pass", "kernels/row_pass.py", "token_kl = tl.zeros_like(nll)", "token_kl = nll * 0.0",
          f"{ROWS} -k whatever_rows_hold"),
    Fault("Triton row pass", ROW_PASS, "total = total * shrink + tl.sum(weight, axis=0)",
          "total = total + tl.sum(weight, axis=0)", f"{ROWS} -k narrower"),
    Fault("Triton row pass", ROW_PASS, "diff_sum = diff_sum * shrink + tl.sum(weight * diff, axis=0)",
          "diff_sum = diff_sum + tl.sum(weight * diff, axis=0)", f"{ROWS} -k narrower"),
    Fault("Triton row pass", ROW_PASS, "token_kl = mean_diff + ref_lse - lse", "token_kl = mean_diff + lse - ref_lse",
          f"{ROWS} -k test_options"),
    Fault("Triton row pass", ROW_PASS, "grad = prob * prob_factor + const", "grad = prob * prob_factor",
          f"{ROWS} -k test_options"),
    Fault("Triton row pass", ROW_PASS, "tl.where(mask, 1.0 - slope * slope, 0.0)", "tl.where(mask, 1.0 - slope, 0.0)",
          f"{ROWS} -k test_options"),
    Fault("Triton row pass", ROW_PASS, "label = -ce_weight * (1.0 - SMOOTHING)", "label = -ce_weight",
          f"{ROWS} -k test_options"),
    Fault("Triton row pass", ROW_PASS, "lost += tl.sum(tl.where(is_label, grad - rounded.to(ACC), 0.0), axis=0)",
          "lost += 0.0", f"{ROWS} -k narrower"),
    Fault("Triton row pass", ROW_PASS, '(label >= 0) & (label < width), label_logit, float("nan"))',
          "(label >= 0) & (label < width), label_logit, 0.0)", f"{ROWS} -k outside_the_vocabulary"),
    Fault("Triton row pass", "kernels/primitives.py", "x * (1 / 6 +", "x * (1 / 5 +", f"{ROWS} -k test_options"),
]  # fmt: skip

TRITON_ATTENTION = [
    Fault("Triton attention", ATTENTION, "(key[None, :] < end[:, None])", "(key[None, :] <= end[:, None])",
          f"{KEYS} -k test_options"),
    Fault("Triton attention", ATTENTION, "first = tl.maximum(run, token - window + 1)",
          "first = tl.maximum(run, token - window)", f"{KEYS} -k test_options"),
    Fault("Triton attention", ATTENTION, "total = total * decay + tl.sum(weight, 1)",
          "total = total + tl.sum(weight, 1)",
          f"{KEYS} -k test_options"),
    Fault("Triton attention", ATTENTION, "jump = whole_tiles * BLOCK_N", "jump = 0", f"{KEYS} -k test_options"),
    Fault("Triton attention", ATTENTION, "kv_head = head // GROUP", "kv_head = head // HEADS",
          f"{KEYS} -k test_shapes"),
]  # fmt: skip

FAULTS = [*ROW_FORMULAS, *COMPACTION_AND_CHUNKS, *OPS_AND_ARGUMENTS, *TRITON_ROW_PASS, *TRITON_ATTENTION]
