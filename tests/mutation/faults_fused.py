"""Faults in the product that writes exponentials, and in the kernels behind a row's sums."""

from __future__ import annotations

from .fault import Fault

FUSED, FUSED_TESTS = "kernels/head_exponentials.py", "tests/interpreted/test_head_exponentials.py"
TERMS, TERMS_TESTS = "kernels/row_terms.py", "tests/interpreted/test_row_terms.py"
SCALED = "kernels/scaled_rows.py"
PRODUCT = "head_exponentials_fwd_kernel"
TERM = "row_terms_fwd_kernel"

FUSED_PRODUCT = [
    Fault("Triton fused product", FUSED, "words[None, :] != label[:, None]", "words[None, :] >= 0",
          f"{FUSED_TESTS} -k test_shapes", within="store_tile"),
    Fault("Triton fused product", FUSED, "words < width", "words < width + 1", f"{FUSED_TESTS} -k test_shapes",
          within="store_tile"),
    Fault("Triton fused product", FUSED, "tl.maximum(peak, higher)", "peak", f"{FUSED_TESTS} -k either_half",
          within=PRODUCT),
    Fault("Triton fused product", FUSED, "column + BLOCK_N // 2", "column", f"{FUSED_TESTS} -k test_shapes",
          within=PRODUCT),
    Fault("Triton fused product", FUSED, "tl.minimum(tiles_m - group * GROUP_M, GROUP_M)", "GROUP_M",
          f"{FUSED_TESTS} -k test_shapes", within="tile_of"),
    Fault("Triton fused product", FUSED, "lane_k[:, None] < depth - k", "lane_k[:, None] <= depth - k",
          f"{FUSED_TESTS} -k strides_of_their_own", within="tile_product",
          survives="x is 0 there, and so are the products: the two masks guard each other against NaN alone"),
    Fault("Triton fused product", FUSED, "tl.load(again_ptr) > 0", "tl.load(again_ptr) > 1",
          f"{FUSED_TESTS} -k runs_again", within=PRODUCT),
    Fault("Triton fused product", FUSED, "tl.max(marks, axis=0) > 0", "tl.max(marks, axis=0) > 1",
          f"{FUSED_TESTS} -k runs_again", within=PRODUCT),
    Fault("Triton fused product", FUSED, "inside & ~(total <= LARGEST)", "inside & (total > LARGEST)",
          f"{FUSED_TESTS} -k nan", within="row_sums_fwd_kernel",
          survives="a NaN stays one whether or not its row runs again; an infinite sum is greater"),
    Fault("Triton fused product", FUSED, "inside & ~(total <= LARGEST)", "inside & (total < 0)",
          f"{FUSED_TESTS} -k runs_again", within="row_sums_fwd_kernel"),
    Fault("Triton fused product", FUSED, "tl.where(peak > float('-inf'), peak, 0.0)", "offset",
          f"{FUSED_TESTS} -k runs_again", within="row_sums_fwd_kernel"),
    Fault("Triton fused product", FUSED, "1.0 - slope * slope", "1.0 - slope", f"{FUSED_TESTS} -k test_options",
          within="store_tile"),
    Fault("Triton fused product", FUSED, "total += tl.sum(tl.load(sum_ptr + at, mask=mask, other=0.0), axis=0)",
          "total = tl.sum(tl.load(sum_ptr + at, mask=mask, other=0.0), axis=0)", f"{FUSED_TESTS} -k more_tiles",
          within="row_sums_fwd_kernel"),
    Fault("Triton fused product", FUSED, "block_n * rows + row", "block_n * tiles_m + row",
          f"{FUSED_TESTS} -k test_shapes", within=PRODUCT),
    Fault("Triton fused product", FUSED, "tl.store(again_ptr + 1 + row, 0)\nif row == 0:\n    tl.store(again_ptr, 0)",
          "pass",
          f"{FUSED_TESTS} -k only_the_row_blocks", within="label_logits_fwd_kernel",
          survives="row blocks that need not run again give the same bits again: it costs time alone"),
    Fault("Triton fused product", FUSED, "tl.where(logit > float('-inf'), logit + ROOM, 0.0)", "logit + ROOM",
          f"{FUSED_TESTS} -k impossible", within="label_logits_fwd_kernel",
          survives="an infinite offset is known by its sums, and the row runs again: it costs time alone"),
    Fault("Triton fused product", FUSED, "apart and whole and tensor.data_ptr() % 16 == 0", "whole",
          f"{FUSED_TESTS} -k descriptors_cannot", within="fits"),
    Fault("Triton fused product", "fastdss/loss/exp_rows.py", "ExpPlan(kept, rows, 0 if fused else rows, apart, fused)",
          "ExpPlan(kept, rows, 0 if fused else rows, apart)", "tests/interpreted/test_fused_loss.py -k cross_entropy",
          within="plan_exponentials"),
]  # fmt: skip

ROW_TERMS = [
    Fault("Triton row terms", TERMS, "log1p_of_unit(small)", "tl.log(1.0 + small)", f"{TERMS_TESTS} -k digits",
          within=TERM),
    Fault("Triton row terms", TERMS, "x / (2.0 + x)", "x / (1.0 + x)", f"{TERMS_TESTS} -k terms_and",
          within="log1p_of_unit"),
    Fault("Triton row terms", TERMS, "tl.where(distance > 0.0, 1.0, small)", "small", f"{TERMS_TESTS} -k terms_and",
          within=TERM),
    Fault("Triton row terms", TERMS, "value, slope = d * d * 0.5, d", "value, slope = d * d * 0.5, 2.0 * d",
          f"{TERMS_TESTS} -k terms_and", within="label_kl"),
    Fault("Triton row terms", TERMS, "-expm1(-d)", "expm1(-d)", f"{TERMS_TESTS} -k terms_and", within="label_kl"),
    Fault("Triton row terms", TERMS, "2.0 * Z_LOSS * lse", "Z_LOSS * lse", f"{TERMS_TESTS} -k terms_and", within=TERM),
    Fault("Triton row terms", TERMS, "weight * SMOOTHING + more - prob * miss", "more - prob * miss",
          f"{TERMS_TESTS} -k terms_and", within=TERM),
    Fault("Triton row terms", TERMS, "tl.where(dead, 0.0, prob * unit * SCALE)", "prob * unit * SCALE",
          f"{TERMS_TESTS} -k without_weight", within=TERM),
    Fault("Triton row terms", TERMS, "(label >= 0) & (label < vocab_size)", "label >= 0",
          f"{TERMS_TESTS} -k labels_outside", within=TERM),
    Fault("Triton row terms", SCALED, "columns < width", "columns < width - 1", f"{TERMS_TESTS} -k times_numbers",
          within="scaled_rows_bwd_kernel"),
    Fault("Triton row terms", SCALED, "tl.load(label_factor_ptr + row) * entries", "entries",
          f"{TERMS_TESTS} -k times_numbers", within="scaled_rows_bwd_kernel"),
]  # fmt: skip

FAULTS = [*FUSED_PRODUCT, *ROW_TERMS]
