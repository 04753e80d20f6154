"""Faults in the collator, the enabled model, the trainers, the reference and its cache, and stored scores."""

from __future__ import annotations

from .fault import Fault

COLLATOR = "tests/train/test_collator.py"
ENABLE = "tests/train/test_enable.py"
REFERENCE = "tests/train/test_reference.py"
CORPUS = "fastdss/corpus"

FAULTS = [
    Fault("collator", "fastdss/collator.py", "firsts = torch.tensor([0, *lengths[:-1]]).cumsum(0)",
          "firsts = torch.tensor([0])", "tests/hardening/test_seams.py"),
    Fault("collator", "fastdss/collator.py", "kl_scale=self.kl_scale, shift=True)", "kl_scale=self.kl_scale)",
          f"{COLLATOR} -k where_the_loss_has_work"),
    Fault("collator", "fastdss/collator.py", "torch.arange(width) - torch.repeat_interleave(",
          "torch.arange(width) - 0 * torch.repeat_interleave(", f"{COLLATOR} -k without_padding"),
    Fault("collator", "fastdss/collator.py", '"labels": (torch.long, IGNORED)', '"labels": (torch.long, 0)',
          f"{COLLATOR} -k padded_batches"),
    Fault("collator", "fastdss/collator.py", '[len(example["input_ids"]) for example in chosen]',
          'sorted(len(example["input_ids"]) for example in chosen)', f"{COLLATOR} -k packed_rows"),
    Fault("collator", "fastdss/collator.py", '"failed" in flags or any(not 0 <= score <= 1 for score in scores)',
          '"failed" in flags', "tests/train/test_prepare.py -k cannot_be_used"),
    Fault("enable", "fastdss/enable.py", '"shift": True,', '"shift": False,', f"{ENABLE} -k plain_formula"),
    Fault("enable", "fastdss/enable.py", "num_items=num_items, **options)", "**options)", f"{ENABLE} -k divisor"),
    Fault("enable", "fastdss/enable.py", "torch.nn.functional.pad(terms[..., :-1], (1, 0))", "terms",
          f"{ENABLE} -k aligned_with_labels"),
    Fault("enable", "fastdss/enable.py", "loss = loss + model.router_aux_loss_coef", "loss = loss + 0",
          f"{ENABLE} -k 'plain_formula and Mixtral'"),
    Fault("reference", "fastdss/trainer.py", "with bare_peft(model).disable_adapter() if adapter else nullcontext():",
          "with nullcontext():", "tests/train/test_train_command.py -k 'every_kind_of_reference and forward'"),
    Fault("reference", "fastdss/reference.py", "row.isfinite().all()", "row.numel()", f"{REFERENCE} -k errors"),
    Fault("reference", "fastdss/reference.py",
          "split = answers[0, : sum(lengths)].split(lengths) if packed else answers",
          "split = answers[0, -sum(lengths) :].flip(0).split(lengths) if packed else answers",
          f"{REFERENCE} -k packed"),
    Fault("cache keys", "fastdss/reference.py", "content = hashlib.sha256(self.model.encode())",
          "content = hashlib.sha256()", f"{REFERENCE} -k other_weights"),
    Fault("cache keys", "fastdss/reference.py", "sorted(adapters.items()), autocast]", "sorted(adapters.items())]",
          f"{REFERENCE} -k other_weights"),
    Fault("cache keys", "fastdss/reference.py", "{_weights_digest(bare)} if model_id is None else set()", "set()",
          f"{REFERENCE} -k other_weights"),
    Fault("cache keys", "fastdss/reference.py", 'metadata.get("sha256") == _digest(values) and', "",
          f"{REFERENCE} -k damaged"),
    Fault("cache keys", f"{CORPUS}/scorer.py", "{path.name}\\0{hashlib.file_digest(file, 'sha256').hexdigest()}",
          "{path.name}\\0{path.stat().st_size}", "tests/corpus/test_scorer.py -k every_byte"),
    Fault("cache keys", f"{CORPUS}/scorer.py", "json.dumps([rendered, ", "json.dumps([None, ",
          "tests/corpus/test_scorer.py -k 'identity_follows or every_byte'"),
    Fault("cache keys", f"{CORPUS}/run.py", 'if name != "guard"}', 'if name != "revision"}',
          "tests/hardening/test_bad_lines.py -k entry"),
    Fault("cache keys", f"{CORPUS}/store.py", "digest.update(json.dumps([row_id, content]).encode())",
          "digest.update(json.dumps([row_id]).encode())", "tests/corpus/test_run.py -k edited_and_appended"),
    Fault("cache keys", f"{CORPUS}/store.py", "page_checksum_verification=True",
          "page_checksum_verification=False", "tests/corpus/test_store.py -k flipped"),
    Fault("cache keys", f"{CORPUS}/rows.py", '[[turn["role"], turn["content"]]', '[[turn["content"]]',
          "tests/hardening/test_fuzz.py -k content_hash"),
    Fault("cache keys", f"{CORPUS}/store.py", "row is None or row.content_hash != score.content_hash",
          "row is None", "tests/corpus/test_store.py -k another_input"),
]  # fmt: skip
