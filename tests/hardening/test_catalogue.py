"""Every line of the catalogue of bad inputs and of the security list, and the test that holds it.

A line whose test is renamed or deleted fails here; the tests themselves run where they stand.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LOSS_INPUTS, ENGINE, EXACT = "loss/test_bad_inputs.py", "loss/test_engine.py", "loss/test_exact.py"
SILENT, EXTREMES, CANARY = "hardening/test_silent_errors.py", "hardening/test_extremes.py", "hardening/test_canary.py"
GUARD_INPUTS, STAR, INJECTION = "star/test_inputs.py", "star/test_exact.py", "guards/test_injection.py"
RUN, STORE, ROWS = "corpus/test_run.py", "corpus/test_store.py", "corpus/test_rows.py"
READERS, ODD = "hardening/test_readers.py", "hardening/test_odd_runs.py"
TRAIN = "train/run"
SCORER, TIME, LINES = "corpus/test_scorer.py", "hardening/test_hostile_sizes.py", "hardening/test_bad_lines.py"

LOSS = {
    "all labels ignored: 0 and zero gradients": f"{LOSS_INPUTS}::test_nothing_to_learn_gives_zero",
    "all labels ignored, 0 items counted": f"{SILENT}::"
    "test_a_step_without_labels_costs_nothing_whoever_counted_its_items",
    "label outside the vocabulary, not ignore_index": f"{LOSS_INPUTS}::test_bad_input",
    "NaN, infinite or negative weight": f"{LOSS_INPUTS}::test_bad_input",
    "zero weight sum: 0, never NaN": f"{LOSS_INPUTS}::test_nothing_to_learn_gives_zero",
    "NaN hidden at a live row: NaN loss": f"{LOSS_INPUTS}::test_nan_counts_at_live_rows_and_nowhere_else",
    "NaN at an ignored or zero-weight row: no effect": f"{LOSS_INPUTS}::test_nan_counts_at_live_rows_and_nowhere_else",
    "N = 0": f"{LOSS_INPUTS}::test_nothing_to_learn_gives_zero",
    "D = 0 or V = 0": f"{LOSS_INPUTS}::test_bad_input",
    "non-contiguous, transposed, stride 0": f"{LOSS_INPUTS}::test_memory_layout_does_not_matter",
    "mixed dtypes, float labels": f"{LOSS_INPUTS}::test_bad_input",
    "mixed devices": f"{LOSS_INPUTS}::test_bad_input",
    "V no multiple of a block, D odd": f"{EXACT}::test_shapes_and_chunks",
    "N * V > 2**31": f"{EXTREMES}::test_more_logits_than_int32_counts",
    "N * V > 2**31 in kernels": "compiled/test_offsets.py::test_rows_are_found_by_64_bit_addresses",
    "logits of 1e4: finite": f"{EXTREMES}::test_logits_up_to_ten_thousand",
    "reference of another vocabulary": f"{LOSS_INPUTS}::test_bad_input",
    "weight on an ignored token": f"{LOSS_INPUTS}::test_a_weight_on_an_ignored_token_has_no_effect",
    "shape shifted by one": f"{LOSS_INPUTS}::test_bad_input",
    "DTensor": "loss/test_vocab_parallel.py::test_a_split_vocabulary_and_fsdp2_on_two_ranks",
    "ZeRO-3 shard": f"{LOSS_INPUTS}::test_bad_input",
    "frozen head: no dW buffer": f"{ENGINE}::test_a_frozen_head_makes_no_weight_gradient",
    "tied embeddings: gradients add": f"{ENGINE}::test_tied_embeddings_add_their_gradients",
    "autocast": f"{ENGINE}::test_autocast_takes_fp32_parameters_and_returns_fp32_gradients",
    "GradScaler": f"{ENGINE}::test_a_gradient_scaler_keeps_fp16_gradients_alive",
    "backend='triton' without a GPU": f"{LOSS_INPUTS}::test_bad_input",
    "rows of another batch": f"{SILENT}::test_rows_of_another_batch",
}

GUARD = {
    "verdict word missing or splitting, or sharing its first piece": f"{GUARD_INPUTS}::"
    "test_verdict_words_are_checked_at_construction",
    "verdict word unknown to the tokenizer": f"{GUARD_INPUTS}::test_an_unknown_verdict_word_is_an_error",
    "empty response: a defined score": f"{GUARD_INPUTS}::test_an_empty_response_has_one_score",
    "response longer than the context": f"{GUARD_INPUTS}::"
    "test_longer_than_the_context_is_an_error_or_a_recorded_truncation",
    "template alone too long": f"{GUARD_INPUTS}::test_a_template_that_is_too_long_alone_is_an_error",
    "special tokens in text: literal text": f"{INJECTION}::test_control_strings_stay_text",
    "merge across a boundary: exact": f"{STAR}::test_fp32_scores_equal_one_forward_per_prefix",
    "UTF-8 split inside a token": f"{GUARD_INPUTS}::test_utf8_characters_split_by_tokens_stay_whole",
    "lone surrogate: the row is named": f"{GUARD_INPUTS}::test_a_lone_surrogate_is_an_error_that_names_the_row",
    "padding side, no pad token": f"{GUARD_INPUTS}::test_padding_side_and_pad_token_do_not_matter",
    "NaN logits: failed, never safe": f"{GUARD_INPUTS}::test_nan_logits_fail_the_row_and_never_say_safe",
    "infinite logits: failed, never safe": "hardening/test_verdicts.py::test_a_logit_that_is_not_finite_gives_no_score",
    "duplicate ids": f"{LINES}::test_ids_that_occur_twice",
    "vocabulary mismatch": f"{GUARD_INPUTS}::test_a_vocabulary_larger_than_the_model_is_an_error",
}

RUNS = {
    "SIGKILL anywhere: resume, same bytes": f"{RUN}::test_killed_and_resumed_is_the_same_bytes",
    "disk full: clean stop": f"{RUN}::test_a_full_disk_stops_cleanly",
    "two writers: the second refused": f"{STORE}::test_the_lock_names_its_holder_and_ends_with_it",
    "truncated shard": f"{STORE}::test_a_truncated_shard_is_found",
    "flipped shard": f"{STORE}::test_a_flipped_byte_is_never_read_as_another_score",
    "damaged shard set aside and scored again": f"{RUN}::test_a_damaged_shard_is_set_aside_and_scored_again",
    "guard or template changed: cache miss": f"{SCORER}::"
    "test_identity_reads_every_byte_of_the_weights_and_the_template",
    "chunking changed: cache miss": f"{SCORER}::test_identity_follows_what_scores_depend_on",
    "guard changed under fastdss train": "train/run/test_data.py::"
    "test_scores_are_used_again_for_the_same_data_and_guard_only",
    "out of memory: smaller budget, same scores": f"{STAR}::test_out_of_memory_halves_the_budget_and_keeps_the_scores",
    "out of memory at the smallest budget: error": f"{STAR}::test_out_of_memory_at_the_smallest_budget_is_an_error",
    "unwritable output: error before the model loads": f"{RUN}::test_unwritable_output_is_found_before_the_guard_loads",
    "edited data: found by content hash": f"{RUN}::test_edited_and_appended_rows_cost_their_own_shards",
    "reordered data": f"{STORE}::test_joined_refuses_another_input",
    "another guard on the same folder at the same time": f"{ODD}::"
    "test_another_guard_on_the_same_folder_at_the_same_time",
    "a clock that goes back": f"{ODD}::test_a_clock_that_goes_back_costs_nothing",
    "input that is somebody else's": f"{ODD}::test_the_input_is_left_as_it_was",
    "input that can be read once only": f"{ODD}::test_a_pipe_is_not_waited_for",
    "folders of any name, behind a link": f"{ODD}::test_an_out_folder_behind_a_link_is_that_folder",
    "names that are no text": f"{ODD}::test_folders_and_files_of_any_name",
    "another program's folder": f"{ODD}::test_another_programs_manifest_is_neither_read_nor_replaced",
    "settings without sense": f"{TRAIN}/test_settings.py::test_settings_that_make_no_sense",
    "a policy smaller than its tokenizer": f"{TRAIN}/test_data.py::test_a_tokenizer_larger_than_the_model",
    "a policy with NaN weights": f"{TRAIN}/test_not_finite.py::test_weights_that_are_not_finite_are_never_trained",
    "reference cache damaged": "train/test_reference.py::test_damaged_parts_are_set_aside",
    "reference cache and a full disk": "train/test_reference.py::test_a_full_disk_leaves_no_half_written_part",
}

SECURITY = {
    "control tokens never come from content, every guard": "guards/test_specs.py::"
    "test_hostile_text_yields_no_control_token",
    "control tokens never come from content, the policy": f"{INJECTION}::"
    "test_the_policy_never_learns_control_tokens_from_content",
    "delimiters typed as text are flagged": f"{INJECTION}::test_plain_text_delimiters_are_flagged",
    "no pickle: guards": f"{SILENT}::test_pickled_weights_are_not_loaded",
    "no pickle: guards of a data set": f"{SCORER}::test_guards_with_code_or_pickles_are_refused",
    "trust_remote_code=False everywhere, no pickle in the code": "hardening/test_sources.py::test_what_is_never_called",
    "revisions can be pinned and are recorded": f"{RUN}::test_manifest_says_what_was_scored",
    "revisions are pinned and recorded, the policy": f"{TRAIN}/test_data.py::test_revisions_are_pinned_and_recorded",
    "caps on rows: memory does not grow with them": f"{ROWS}::test_memory_does_not_grow_with_the_rows",
    "bytes that are no text: saved data sets": f"{ODD}::test_bytes_that_are_no_text_in_a_saved_data_set",
    "cache keys: the guard's configuration and tokenizer": f"{LINES}::"
    "test_a_guard_that_computes_otherwise_from_the_same_weights_is_another_guard",
    "templates render in the sandbox": f"{CANARY}::test_templates",
    "data is passed as variables only": f"{INJECTION}::test_control_strings_stay_text",
    "row ids never become paths": f"{RUN}::test_hostile_ids_never_become_paths",
    "caps on bytes per row": f"{ROWS}::test_bad_rows_fail_alone_with_a_reason_that_never_quotes_them",
    "caps on bytes of what never ends": f"{READERS}::"
    "test_a_quote_that_is_never_closed_does_not_fill_memory",
    "records that readers take differently": f"{READERS}::test_a_record_of_csv_that_does_not_fit_fails_alone",
    "names that occur twice: columns": f"{READERS}::test_two_columns_of_one_name",
    "names that occur twice: JSON": f"{LINES}::test_an_object_that_names_a_column_twice_is_no_row",
    "bytes that are no text: Parquet": f"{READERS}::test_what_parquet_holds_and_python_does_not_fails_alone",
    "caps on tokens per row": f"{GUARD_INPUTS}::test_longer_than_the_context_is_an_error_or_a_recorded_truncation",
    "a response of 10 MB ends in a clear error": f"{GUARD_INPUTS}::"
    "test_a_response_of_ten_megabytes_ends_in_a_clear_error",
    "time does not grow with the square of a hostile text": f"{TIME}::test_time_grows_with_the_text_not_its_square",
    "cache keys: content": "hardening/test_fuzz.py::test_the_content_hash_tells_conversations_apart",
    "failed or missing rows never default to safe": f"{SILENT}::test_what_no_forward_fills_is_nan",
    "failed rows raise or weigh 0": f"{GUARD_INPUTS}::test_nan_logits_fail_the_row_and_never_say_safe",
    "logs and errors carry no text: scores": f"{CANARY}::test_star_scores",
    "logs and errors carry no text: commands": f"{CANARY}::test_the_command_line",
    "logs and errors carry no text: runs": f"{RUN}::test_no_text_in_manifest_logs_or_errors",
}  # fmt: skip

CATALOGUE = {
    f"{part}: {line}": where
    for part, lines in {"loss": LOSS, "guard": GUARD, "runs": RUNS, "security": SECURITY}.items()
    for line, where in lines.items()
}


@functools.cache
def functions(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def checks(function: ast.FunctionDef, path: Path) -> bool:
    """Whether the test, or a function of its file that it calls, can fail."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) or (
            isinstance(node, ast.Attribute) and node.attr in ("raises", "assert_close")
        ):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name.startswith(("assert_", "check", "spawn", "fails_")) or (
                name in functions(path) and name != function.name and checks(functions(path)[name], path)
            ):
                return True
    return False


@pytest.mark.parametrize("line", CATALOGUE)
def test_line(line: str) -> None:
    file, name = CATALOGUE[line].split("::")
    function = functions(TESTS / file).get(name)
    assert function is not None, f"{line}: {file} has no {name}"
    assert checks(function, TESTS / file), f"{line}: {name} asserts nothing"
