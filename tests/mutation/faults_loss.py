"""Faults in the row formulas, the chunk driver, the ops and the two Triton kernels."""

from __future__ import annotations

from .fault import Fault

OBJECTIVE, CHUNKED, INPUTS = "fastdss/loss/objective.py", "fastdss/loss/chunked.py", "fastdss/loss/inputs.py"
SHARD, GRADIENT, GEMM = "fastdss/loss/vocab_shard.py", "fastdss/loss/row_gradient.py", "fastdss/loss/gemm.py"
FILTER, FILTERED = "fastdss/loss/column_filter.py", "tests/loss/test_column_filter.py"
ROW_PASS, ATTENTION = "kernels/row_pass.py", "kernels/prefix_attention.py"
LABEL_ROWS, FINISH = "kernels/label_rows.py", "tests/interpreted/test_gradient_kernels.py"
EXPS, KEPT, EXP_ROWS = "fastdss/loss/exponentials.py", "fastdss/loss/kept.py", "fastdss/loss/exp_rows.py"
ROWS_OF, KERNEL = "fastdss/loss/rows.py", "kernels/exponentials.py"
EXP_TESTS, EXP_KERNEL = "tests/loss/test_exponentials.py", "tests/interpreted/test_exponentials.py"
EXACT = "tests/loss/test_exact.py"
DSS = f"{EXACT} -k test_dss_loss"
CHUNKS = f"{EXACT} -k test_shapes_and_chunks"
BAD = "tests/loss/test_bad_inputs.py"
ENGINE = "tests/loss/test_engine.py"
AUTOGRAD = "tests/loss/test_autograd.py"
RANKS = "tests/loss/test_vocab_parallel.py"
ROWS = "tests/interpreted/test_row_pass.py"
KEYS = "tests/interpreted/test_prefix_attention.py"

ROW_FORMULAS = [
    Fault("row formulas", OBJECTIVE, "torch.ones_like", "torch.zeros_like", DSS, within="label_kl"),
    Fault("row formulas", OBJECTIVE, "(d * d * 0.5, d)", "(d * d * 0.5, 2 * d)", DSS, within="label_kl"),
    Fault("row formulas", OBJECTIVE, "-torch.expm1(-d)", "torch.expm1(-d)", DSS, within="label_kl"),
    Fault("row formulas", OBJECTIVE, "2 * o.z_loss", "o.z_loss", DSS, within="finish_rows"),
    Fault("row formulas", OBJECTIVE, "rows.ce_weight * (o.label_smoothing - 1)", "-rows.ce_weight", DSS,
          within="finish_rows"),
    Fault("row formulas", OBJECTIVE, "-e / vocab_size", "-e", DSS, within="smoothing_term"),
    Fault("row formulas", OBJECTIVE, "prob + b if o.kl == 'forward' else prob", "prob", DSS, within="finish_rows"),
    Fault("row formulas", OBJECTIVE, "1 if o.kl == 'reverse' else -1", "1", DSS, within="finish_rows"),
    Fault("row formulas", OBJECTIVE, "coefficients.prob * share - kl * stats.mean_diff",
          "coefficients.prob * share", DSS, within="_write_gradient"),
    Fault("row formulas", OBJECTIVE, "1 - z.square()", "1 - z", DSS, within="transform"),
    Fault("row formulas", OBJECTIVE,
          "RowCoefficients(prob * s, label * s, smoothing_term(rows.ce_weight, o, vocab_size), None if b "
          "is None or stats.ref_lse is None else b * s)",
          "RowCoefficients(prob, label * s, smoothing_term(rows.ce_weight, o, vocab_size), None if b is "
          "None or stats.ref_lse is None else b * s)", DSS, within="finish_rows"),
    Fault("row formulas", OBJECTIVE, "label_logit.masked_fill(labels.clamp(0, vocab_size - 1) != labels, math.nan)",
          "label_logit", f"{BAD} -k under_compile", within="in_vocabulary"),
    Fault("row formulas", OBJECTIVE, "(-nll - rows.ref_logprobs).masked_fill(b == 0, 0)", "-nll - rows.ref_logprobs",
          f"{BAD} -k nan_counts", within="label_terms"),
    Fault("row formulas", OBJECTIVE, "(z if reverse else z_ref) == -math.inf",
          "(z if reverse else z_ref) == math.inf", f"{EXACT} -k impossible_token", within="_local_stats"),
    Fault("row formulas", OBJECTIVE, "start + step", "start + step - 1",
          "tests/hardening/test_extremes.py -k vocabulary", within="torch_row_pass"),
]  # fmt: skip

COMPACTION_AND_CHUNKS = [
    Fault("compaction", CHUNKED, "None if self.plan.trusted else inputs.kl_weight[:with_ref] == 0", "None",
          "tests/loss/test_engine.py -k weight_is_zero", within="_Run._ref_rows"),
    Fault("compaction", ROWS_OF, "has_kl | (ce_weight != 0)", "ce_weight != 0", DSS, within="order_rows"),
    Fault("compaction", ROWS_OF, "torch.logical_or(ce_weight, kl_weight)", "ce_weight", DSS, within="_weighted_rows"),
    Fault("compaction", ROWS_OF, "torch.where(has_kl, 0, torch.where(live, 1, 2))", "torch.where(live, 0, 2)", DSS,
          within="order_rows"),
    Fault("compaction", ROWS_OF, "x if dead is None else x.masked_fill(dead.unsqueeze(1), 0)", "x",
          f"{BAD} -k nan_counts", within="gather"),
    Fault("compaction", CHUNKED, "ce.masked_fill(dead, 0)", "ce",
          f"{ENGINE} -k live_rows_and_no_compaction", within="_Run.row_pass"),
    Fault("compaction", CHUNKED, "call.hidden.new_zeros if self.plan.count == 0 or self.plan.index is not None else "
          "call.hidden.new_empty", "call.hidden.new_empty if self.plan.count else call.hidden.new_empty",
          f"{ROWS} -k test_shapes", within="_Run.__init__"),
    Fault("compaction", CHUNKED,
          "if self.d_hidden is not None and d_x is not None and isinstance(rows, Tensor):\n    "
          "self.d_hidden.index_copy_(0, rows, d_x)",
          "if self.d_hidden is not None and d_x is not None and isinstance(rows, Tensor):\n    "
          "self.d_hidden[:len(d_x)] = d_x", DSS, within="_Run._add"),
    Fault("chunk loop", ROWS_OF, "range(0, self.count, size)", "range(0, max(self.count - 1, 1), size)", CHUNKS,
          within="RowPlan.chunks"),
    Fault("chunk loop", ROWS_OF, "max(self.kl_rows - start, 0)", "self.kl_rows", "tests/hardening/test_seams.py",
          within="RowPlan.chunks"),
    Fault("chunk loop", CHUNKED, "slice(span.start, span.start + with_ref)", "slice(0, with_ref)",
          f"{ENGINE} -k live_rows_and_no_compaction", within="_Run._ref_rows"),
    Fault("dW accumulation", GEMM, "0 if first else 1", "0", CHUNKS, within="add_product"),
    Fault("dW accumulation", GRADIENT, "d_bias += self.dz.sum(dim=0, dtype=d_bias.dtype)",
          "d_bias.copy_(self.dz.sum(dim=0, dtype=d_bias.dtype))", CHUNKS, within="RowGradient.add_bias"),
    Fault("dW accumulation", GRADIENT,
          "if d_head is not None:\n    label_rows(d_head, x, self.lost, self.labels, self.backend, " "scatter=True)",
          "if d_head is not None:\n    pass", f"{EXACT} -k as_on_a_gpu", within="RowGradient.multiply"),
    Fault("dX", GRADIENT, "if d_x is not None:\n    label_rows(d_x, head, self.lost, self.labels, self.backend, "
          "scatter=False)", "if d_x is not None:\n    pass", f"{EXACT} -k as_on_a_gpu", within="RowGradient.multiply"),
    Fault("dX", GEMM, "source[labels]", "source[:len(labels)]", f"{EXACT} -k as_on_a_gpu", within="label_rows"),
    Fault("dX", GRADIENT, "exact - rounded", "0 * exact", f"{EXACT} -k sixteen_bit_inputs",
          within="RowGradient._multiply_head"),
    Fault("column filter", FILTER,
          "(self.tolerance * share) ** 2 * total", "4 * (self.tolerance * share) ** 2 * total",
          f"{FILTERED} -k promise", within="ColumnFilter.keep"),
    Fault("column filter", FILTER,
          "share == 1.0 or float(growing[count - 1]) - float(made_up) <= self.tolerance ** 2 * total", "True",
          f"{FILTERED} -k promise", within="ColumnFilter.keep"),
    Fault("column filter", FILTER, "entries.beside.double().square().sum(0, keepdim=True)",
          "9 * entries.beside.double().square().sum(0, keepdim=True)", f"{FILTERED} -k promise",
          within="ColumnFilter.keep"),
    Fault("column filter", FILTER, "self.row is None", "True", f"{FILTERED} -k promise", within="Entries.energies"),
    Fault("column filter", FILTER, "not (math.isfinite(total) and unseen <= _UNSEEN * self.tolerance ** 2 * total)",
          "False", f"{FILTERED} -k nan", within="ColumnFilter.keep"),
    Fault("column filter", FILTER, "math.isfinite(total) and unseen <= _UNSEEN * self.tolerance ** 2 * total",
          "math.isfinite(total)", f"{FILTERED} -k squares_vanish", within="ColumnFilter.keep"),
    Fault("column filter", FILTER,
          "squares = torch.mul(part, factor.unsqueeze(1), out=scratch[:part.shape[0]]).square_()\n"
          "sums.addmv_(squares.t(), torch.ones_like(factor))",
          "squares = scratch[:part.shape[0]].copy_(part).square_()\nsums.addmv_(squares.t(), factor.square())",
          f"{FILTERED} -k squared_alone", within="Entries.energies"),
    Fault("column filter", FILTER, "entries.transposed_times(left).masked_fill_(~dropped, 0)",
          "entries.transposed_times(left)", FILTERED, within="_rank_one"),
    Fault("column filter", FILTER, "size / squared", "size * squared", FILTERED, within="_rank_one"),
    Fault("column filter", FILTER, "vector if self.row is None else vector * self.row", "vector", FILTERED,
          within="Entries.transposed_times"),
    Fault("column filter", FILTER, "d_hidden[dropped.rows] += torch.outer(dropped.left, mean)", "pass", FILTERED,
          within="ColumnFilter.put_back"),
    Fault("column filter", FILTER,
          "if d_head is not None:\n    d_head.addmm_(right.t(), torch.stack([dropped.left_x for dropped in "
          "self._dropped]))",
          "if d_head is not None:\n    d_head.addmm_(0 * right.t(), torch.stack([dropped.left_x for dropped "
          "in self._dropped]))", FILTERED, within="ColumnFilter.put_back"),
    Fault("column filter", FILTER,
          "if d_head is not None:\n    product = d_head.new_empty((part.shape[0], x.shape[1]))\n    "
          "add_product(product, gathered.t(), x, first=True)\n    d_head.index_add_(0, part, product)",
          "if d_head is not None:\n    product = d_head.new_empty((part.shape[0], x.shape[1]))\n    "
          "add_product(product, gathered.t(), x, first=True)\n    d_head[part] = product",
          f"{FILTERED} -k every_option", within="multiply_columns"),
    Fault("column filter", FILTER, "if d_x is not None:\n    d_x.zero_()", "if d_x is not None:\n    pass",
          f"{FILTERED} -k every_option", within="multiply_columns"),
    Fault("column filter", CHUNKED, "self.plan.count > 0 and self.filtered is None", "self.plan.count > 0",
          f"{FILTERED} -k every_option", within="_Run.__init__"),
    Fault("exponentials", EXPS, "-prob * stats.miss", "-prob", DSS, within="terms_and_factors"),
    Fault("exponentials", EXPS, "2 * o.z_loss", "o.z_loss", f"{EXP_TESTS} -k kept_and_in_chunks",
          within="terms_and_factors"),
    Fault("exponentials", EXPS, "rows.ce_weight * o.label_smoothing + more", "more",
          f"{EXP_TESTS} -k kept_and_in_chunks", within="terms_and_factors"),
    Fault("exponentials", EXPS, "label = label * stats.cap_slope", "pass", f"{EXP_TESTS} -k kept_and_in_chunks",
          within="terms_and_factors"),
    Fault("exponentials", EXPS, "label_logit.masked_fill(mine, -torch.inf)", "label_logit",
          f"{EXP_TESTS} -k kept_and_in_chunks", within="_block_exponentials"),
    Fault("exponentials", EXPS, "label_logit + nll", "label_logit - nll", f"{EXP_TESTS} -k certain_label",
          within="combined"),
    Fault("exponentials", EXPS, "others + F.softplus(-distance, threshold=40.0)", "others",
          f"{EXP_TESTS} -k kept_and_in_chunks", within="combined"),
    Fault("exponentials", EXPS, "F.softplus(distance, threshold=40.0)", "F.softplus(distance, threshold=1.0)", DSS,
          within="combined"),
    Fault("exponentials", EXPS, "(sums.others - others).exp()", "1.0", RANKS, within="combined"),
    Fault("exponentials", EXPS, "label = label.masked_fill(local.clamp(0, shard.width - 1) != local, 0)", "pass",
          RANKS, within="terms_and_factors"),
    Fault("exponentials", EXPS, "ce, row, label = (t.masked_fill(dead, 0) for t in (ce, row, label))", "pass",
          f"{ENGINE} -k live_rows_and_no_compaction", within="terms_and_factors"),
    Fault("exponentials", EXPS, "label_sums = label.new_zeros((columns.shape[0], x.shape[1]))\n"
          "label_sums.index_add_(0, place, self._times(x, label, label.dtype))",
          "label_sums = label.new_zeros((columns.shape[0], x.shape[1]))\n"
          "label_sums[place] = self._times(x, label, label.dtype)", f"{EXP_TESTS} -k rounded_once",
          within="ExpGradient.rounded_head"),
    Fault("exponentials", EXPS,
          "for part, sums in zip(columns.split(_LABELS), label_sums.split(_LABELS), strict=True):\n    "
          "add_product(sums, self.exponentials.index_select(1, part).t(), scaled)\n    "
          "d_head.index_copy_(0, part, sums.to(dtype))",
          "for part, sums in zip(columns.split(_LABELS), label_sums.split(_LABELS), strict=True):\n    "
          "pass\n    d_head.index_copy_(0, part, sums.to(dtype))", f"{EXP_TESTS} -k rounded_once",
          within="ExpGradient.rounded_head"),
    Fault("exponentials", EXPS, "e.t().to(d_bias.dtype)", "e.t().to(d_bias.dtype) * (1 + 2**-9)",
          "tests/loss/test_exponentials.py -k bias_is_rounded", within="ExpGradient.add_bias"),
    Fault("exponentials", EXPS, "def add_bias(self, d_bias: Tensor) -> None:\n    for e, v in "
          "zip(self.exponentials.split(_LABELS), self.factors.row.split(_LABELS), strict=True):\n        "
          "d_bias.addmv_(e.t().to(d_bias.dtype), v)\n    d_bias.index_add_(0, self.labels, "
          "self.factors.label)\n    if self.factors.const is not None:\n        d_bias += "
          "self.factors.const.sum()", "def add_bias(self, d_bias: Tensor) -> None:\n    for e, v in "
          "zip(self.exponentials.split(_LABELS), self.factors.row.split(_LABELS), strict=True):\n        "
          "d_bias.addmv_(e.t().to(d_bias.dtype), v)\n    pass\n    if self.factors.const is not None:\n      "
          "  d_bias += self.factors.const.sum()", DSS, within="ExpGradient"),
    Fault("exponentials", KEPT, "None if t is None else scaled_weight(t, upstream)", "t",
          f"{EXP_TESTS} -k kept_and_in_chunks", within="_gradients"),
    Fault("exponentials", KEPT, "None if t is None else t * upstream", "t", f"{EXP_TESTS} -k kept_and_in_chunks",
          within="_gradients"),
    Fault("exponentials", KEPT, "upstream if kept.rows is None else upstream[kept.rows]",
          "upstream[:len(factors.row)]", f"{EXP_TESTS} -k kept_and_in_chunks", within="_gradients"),
    Fault("exponentials", KEPT, "torch.distributed.all_reduce", "print", RANKS, within="_gradients"),
    Fault("exponentials", EXP_ROWS, "plan.count <= _WHOLE * call.hidden.shape[1]",
          "plan.count < _WHOLE * call.hidden.shape[1]", f"{EXP_TESTS} -k what_is_kept", within="_keeps_half"),
    Fault("exponentials", EXP_ROWS, "main_grad or smoothed or call.lm_head.dtype != call.compute_dtype",
          "smoothed or call.lm_head.dtype != call.compute_dtype", f"{EXP_TESTS} -k what_is_kept", within="_keeps_half"),
    Fault("bf16 factors", "fastdss/upstream/process.py", "if not self._within:\n    self._set(self._before)", "pass",
          f"{EXP_TESTS} -k given_back", within="ProcessSetting.__exit__"),
    Fault("bf16 factors", "fastdss/upstream/process.py", "not self._within", "True", f"{EXP_TESTS} -k given_back",
          within="ProcessSetting.__exit__"),
    Fault("bf16 factors", GEMM, "dtype == torch.bfloat16 and multiplies_bf16()", "multiplies_bf16()",
          f"{EXP_TESTS} -k given_back", within="bf16_factors"),
    Fault("vocab parallel", SHARD, "0 if reverse else -1", "0", RANKS, within="VocabShard.combine"),
    Fault("vocab parallel", EXPS, "share.masked_fill(others == -math.inf, 0)", "share", RANKS, within="combined"),
    Fault("vocab parallel", SHARD, "group.rank() * width", "0", RANKS, within="VocabShard.of"),
    Fault("vocab parallel", CHUNKED, "self.d_hidden is not None and self.shard.group is not None", "False", RANKS,
          within="_Run.result"),
    Fault("vocab parallel", SHARD, "(lses - peaks).exp()", "torch.ones_like(lses)", RANKS, within="VocabShard.combine"),
    Fault("vocab parallel", OBJECTIVE, "(local.lse - stats.lse).exp()", "torch.ones_like(local.lse)", RANKS,
          within="_write_gradient"),
]  # fmt: skip

OPS_AND_ARGUMENTS = [
    Fault("ops", "fastdss/loss/ops.py", "scaled_weight(call.ce_weight, grad)", "call.ce_weight",
          f"{EXACT} -k reductions", within="_upstream"),
    Fault("ops", "fastdss/loss/ops.py", "same and not graph_is_kept()", "same", f"{AUTOGRAD} -k written_to",
          within="_times"),
    Fault("ops", KEPT, "transforms_active()", "False", f"{AUTOGRAD} -k transforms", within="evaluate"),
    Fault("ops", KEPT, "not sizes.kept or not plan.count", "not sizes.kept", f"{BAD} -k nothing_to_learn",
          within="evaluate"),
    Fault("ops", "fastdss/loss/checks.py", "labels = labels.long()", "pass", BAD, within="check_values"),
    Fault("exponentials", EXPS, "label_logit.nan_to_num(nan=math.nan, posinf=math.nan, neginf=-math.inf)",
          "label_logit", f"{BAD} -k infinite_logit", within="combined"),
    Fault("ops", "fastdss/loss/ops.py", "torch.mul(gradient, factor, out=out)",
          "torch.mul(gradient, factor.abs(), out=out)", f"{EXACT} -k reductions", within="scaled"),
    Fault("ops", KEPT, "torch.is_grad_enabled()", "False", f"{ENGINE} -k double_backward",
          within="refuse_double_backward"),
    Fault("weights", INPUTS, "(1 - weight) * kl_scale", "1 - weight", DSS, within="shaping_weights"),
    Fault("weights", INPUTS, "self.counts.sum", "(self.ce_weight != 0).sum", DSS, within="Batch.items"),
    Fault("weights", INPUTS, "x.narrow(dim, 1, x.shape[dim] - 1)", "x.narrow(dim, 0, x.shape[dim] - 1)",
          f"{ENGINE} -k shift_pairs", within="shifted"),
    Fault("weights", INPUTS, "weight.masked_fill(there, 0)", "0 * weight",
          "tests/hardening/test_silent_errors.py -k rows_of_another_batch", within="Batch._refuse_rows"),
    Fault("weights", INPUTS, "objective.full_kl or isinstance(reference, HeadReference)", "objective.full_kl",
          f"{BAD} -k without_kl_scale", within="Batch.call"),
    Fault("weights", INPUTS, "logprobs.to(self.ce_weight.dtype).contiguous()", "logprobs.to(self.ce_weight.dtype)",
          f"{ROWS} -k strided", within="Batch.reference_logprobs"),
    Fault("weights", INPUTS,
          "num_items_in_batch.to(count.device, self.ce_weight.dtype, non_blocking=True).reshape(())",
          "num_items_in_batch.to(count.device, self.ce_weight.dtype, non_blocking=True)",
          f"{BAD} -k num_items_as_a_tensor", within="Batch.items"),
    Fault("reference", "fastdss/loss/reference.py",
          "Objective('none', logit_scale=o.ref_logit_scale, softcap=o.ref_softcap)",
          "Objective('none', logit_scale=o.logit_scale, softcap=o.softcap)",
          "tests/hardening/test_properties.py -k reference_of_label_forms", within="logprobs_of_reference"),
]  # fmt: skip

TANGENT, TANGENT_TESTS = "fastdss/loss/tangent.py", "tests/loss/test_tangent.py"
FUNCTIONAL = "fastdss/loss/functional.py"
FORWARD_KL = [
    Fault("forward KL", KEPT, "kept.slope.to(d_x.dtype)", "0 * kept.slope.to(d_x.dtype)",
          f"{TANGENT_TESTS} -k 'full_logits and kept'", within="_gradients"),
    Fault("forward KL", KEPT, "group or kept.slope is not None", "group",
          f"{TANGENT_TESTS} -k 'sixteen and kept and bf16'", within="_gradients"),
    Fault("forward KL", CHUNKED, "self.call.ref_slope.to(self.accumulate)", "0 * self.call.ref_slope",
          f"{TANGENT_TESTS} -k compiled", within="_Run.result"),
    Fault("forward KL", FUNCTIONAL, "-batch.kl_weight", "batch.kl_weight", f"{TANGENT_TESTS} -k other_ways",
          within="dss_loss"),
    Fault("forward KL", FUNCTIONAL, "-token_kl", "token_kl", f"{TANGENT_TESTS} -k other_ways", within="dss_loss"),
    Fault("forward KL", TANGENT, "slope.masked_fill(unused.unsqueeze(1), 0)", "slope", f"{TANGENT_TESTS} -k nan_where",
          within="tangent_of"),
    Fault("forward KL", TANGENT, "_products(batch, slope) - found.token_ce", "_products(batch, slope)",
          f"{TANGENT_TESTS} -k other_ways", within="forward_reference"),
    Fault("forward KL", TANGENT, "batch.hidden.detach().to(batch.compute_dtype)", "batch.hidden.detach()",
          f"{TANGENT_TESTS} -k autocast", within="_products"),
    Fault("forward KL", TANGENT, "shifted(slope.detach(), batch.shift, 0, dim=-2)",
          "shifted(slope.detach(), batch.shift, 0)", f"{TANGENT_TESTS} -k shifted_rows", within="tangent_of"),
    Fault("forward KL", TANGENT, "-(_SLACK + _SHARE * (token_ce.abs() + reference.logprobs.abs()))", "-1e9",
          f"{TANGENT_TESTS} -k another_head", within="refuse_another_head"),
    Fault("forward KL", TANGENT, "tensor is not None and tensor.requires_grad", "False",
          f"{TANGENT_TESTS} -k what_is_refused", within="check_one_head"),
]  # fmt: skip

TRITON_ROW_PASS = [
    Fault("Triton row pass", ROW_PASS, "(last - i) * BLOCK_V", "i * BLOCK_V", f"{ROWS} -k narrower",
          within="write_gradient"),
    Fault("Triton row pass", ROWS_OF, "self._memory[:count].view(dtype)[:, start:start + self.width]",
          "self._memory[:count].view(dtype)[:, :self.width]", f"{ROWS} -k narrower", within="Slab.narrow"),
    Fault("Triton gradients", LABEL_ROWS,
          "if SCATTER:\n    tl.atomic_add(there, term, mask=mask, sem='relaxed')\nelse:\n    tl.store(there, "
          "tl.load(there, mask=mask, other=0.0) + term, mask=mask)",
          "if SCATTER:\n    tl.store(there, term, mask=mask)\nelse:\n    tl.store(there, tl.load(there, "
          "mask=mask, other=0.0) + term, mask=mask)", FINISH, within="label_rows_bwd_kernel"),
    Fault("Triton gradients", LABEL_ROWS, "(label, row)", "(row, row)", FINISH, within="label_rows_bwd_kernel"),
    Fault("Triton gradients", "kernels/scale.py", "inside = at < count", "inside = at < count - 1", FINISH,
          within="scale_fwd_kernel"),
    Fault("Triton row pass", "kernels/row_pass.py", "mask & (columns == local_label)", "columns == local_label",
          f"{ROWS} -k another_rank", within="write_gradient"),
    Fault("Triton row pass", "kernels/row_pass.py", "tl.zeros_like(nll)", "nll * 0.0",
          f"{ROWS} -k whatever_rows_hold", within="finish_row"),
    Fault("Triton row pass", ROW_PASS, "total * shrink", "total", f"{ROWS} -k narrower", within="row_sums"),
    Fault("Triton row pass", ROW_PASS, "diff_sum * shrink", "diff_sum", f"{ROWS} -k narrower", within="row_sums"),
    Fault("Triton row pass", ROW_PASS, "mean_diff + ref_lse - lse", "mean_diff + lse - ref_lse",
          f"{ROWS} -k test_options", within="finish_row"),
    Fault("Triton row pass", ROW_PASS, "prob * prob_factor + const", "prob * prob_factor", f"{ROWS} -k test_options",
          within="write_gradient"),
    Fault("Triton row pass", ROW_PASS, "slope * slope", "slope", f"{ROWS} -k test_options", within="write_gradient"),
    Fault("Triton row pass", ROW_PASS, "-ce_weight * (1.0 - SMOOTHING)", "-ce_weight", f"{ROWS} -k test_options",
          within="finish_row"),
    Fault("Triton row pass", ROW_PASS, "tl.sum(tl.where(is_label, grad - rounded.to(ACC), 0.0), axis=0)", "0.0",
          f"{ROWS} -k narrower", within="write_gradient"),
    Fault("Triton row pass", ROW_PASS, "float('nan')", "0.0", f"{ROWS} -k outside_the_vocabulary",
          within="row_pass_fwd_kernel"),
    Fault("Triton row pass", "kernels/primitives.py", "1 / 6 + x * (1 / 24 + x * (1 / 120 + x / 720))",
          "1 / 5 + x * (1 / 24 + x * (1 / 120 + x / 720))", "tests/interpreted/test_row_terms.py -k small_difference",
          within="expm1"),
]  # fmt: skip

TRITON_EXPONENTIALS = [
    Fault("Triton exponentials", KERNEL, "mask & (columns != local_label)", "mask", EXP_KERNEL,
          within="store_exponentials"),
    Fault("Triton exponentials", KERNEL, "(total >= SMALLEST) & (total <= LARGEST)", "total >= SMALLEST",
          f"{EXP_KERNEL} -k read_again", within="exponentials_fwd_kernel"),
    Fault("Triton exponentials", KERNEL, "(total >= SMALLEST) & (total <= LARGEST)", "total <= LARGEST",
          f"{EXP_KERNEL} -k too_high", within="exponentials_fwd_kernel"),
    Fault("Triton exponentials", "kernels/primitives.py", "-expm1(double)", "1.0 - tl.exp(double)",
          f"{EXP_KERNEL} -k wide_softcap", within="tanh"),
    Fault("Triton exponentials", KERNEL, "total += tl.sum(exponential, axis=0)",
          "total = tl.sum(exponential, axis=0)", f"{EXP_KERNEL} -k test_shapes", within="store_exponentials"),
    Fault("Triton exponentials", KERNEL, "exponential *= tl.where(mask, 1.0 - slope * slope, 0.0)", "pass",
          f"{EXP_KERNEL} -k softcap", within="store_exponentials"),
    Fault("Triton exponentials", KERNEL, "offset + tl.log(total)", "tl.log(total)", f"{EXP_KERNEL} -k test_shapes",
          within="exponentials_fwd_kernel"),
]  # fmt: skip

TRITON_ATTENTION = [
    Fault("Triton attention", ATTENTION, "key[None, :] < end[:, None]", "key[None, :] <= end[:, None]",
          f"{KEYS} -k test_options", within="_visit_keys"),
    Fault("Triton attention", ATTENTION, "token - window + 1", "token - window", f"{KEYS} -k test_options",
          within="prefix_attention_fwd_kernel"),
    Fault("Triton attention", ATTENTION, "total * decay", "total", f"{KEYS} -k test_options", within="_visit_keys"),
    Fault("Triton attention", ATTENTION, "whole_tiles * BLOCK_N", "0", f"{KEYS} -k test_options",
          within="_visit_source"),
    Fault("Triton attention", ATTENTION, "head // GROUP", "head // HEADS", f"{KEYS} -k test_shapes",
          within="prefix_attention_fwd_kernel"),
]  # fmt: skip

FAULTS = [
    *ROW_FORMULAS,
    *COMPACTION_AND_CHUNKS,
    *OPS_AND_ARGUMENTS,
    *FORWARD_KL,
    *TRITON_ROW_PASS,
    *TRITON_EXPONENTIALS,
    *TRITON_ATTENTION,
]
