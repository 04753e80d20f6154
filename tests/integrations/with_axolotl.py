"""The axolotl plugin in axolotl itself, on a CPU: ``python -m tests.integrations.with_axolotl`` (make test-axolotl).

axolotl pins another transformers and packages for GPUs, so pip would not install both: it is put into a folder of its
own without its requirements, and beside it what its training imports on the way. Then its own command loads the YAML,
its check passes over it, its builders make the trainer, and one step is trained, which must be the plain formula's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(__file__).parent / ".axolotl"
PACKAGES = [
    "axolotl==0.19.0", "trl==1.9.0", "bitsandbytes==0.50.2", "optimum==1.16.2", "numba", "llvmlite", "addict",
    "colorama", "art", "schedulefree", "posthog==6.7.11", "backoff", "distro", "fire", "termcolor", "python-dotenv",
    "zstandard", "evaluate", "fastcore", "six", "python-dateutil", "nvidia-ml-py", "einops", "protobuf",
]  # fmt: skip
CONTRIBUTED = ["axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6"]  # parts of the package's own folder
RUNS = {
    "full fine-tuning, k2": "dss_kl: k2\ndss_kl_scale: 0.5\nmicro_batch_size: 3\ngradient_accumulation_steps: 2\n",
    "packed": "dss_kl_scale: 0.5\ndss_packing: true\nmicro_batch_size: 8\ngradient_accumulation_steps: 1\n",
    "LoRA, reverse KL, live reference": (
        "dss_kl: reverse\ndss_reference: adapter\nadapter: lora\nlora_r: 2\nlora_alpha: 4\nlora_target_linear: true\n"
        "lora_mlp_kernel: false\nlora_qkv_kernel: false\nlora_o_kernel: false\n"  # which need a GPU
        "micro_batch_size: 6\ngradient_accumulation_steps: 1\n"
    ),
}
YAML = """
base_model: {folder}/model
plugins: [fastdss.integrations.axolotl.DSSPlugin]
dss_data: {folder}/scored.jsonl
sequence_len: 128
max_steps: 1
num_epochs: 1
learning_rate: 1.0e-3
optimizer: adamw_torch
lr_scheduler: cosine
attn_implementation: sdpa
bf16: false
fp16: false
tf32: false
logging_steps: 1
output_dir: {folder}/out
"""


def install() -> None:
    if (CACHE / "axolotl" / "contribs").is_dir():
        return
    shutil.rmtree(CACHE, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, str(CACHE), *PACKAGES], check=True)
    (CACHE / "wandb").mkdir()  # which it imports to ask whether a run is going on
    (CACHE / "wandb" / "__init__.py").write_text("run = None\n")
    for package in CONTRIBUTED:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([*pip, folder, package], check=True)
            shutil.copytree(f"{folder}/axolotl/contribs", CACHE / "axolotl" / "contribs", dirs_exist_ok=True)


def train(name: str) -> None:
    """In a process of its own: axolotl's way from the YAML to a trained step."""
    sys.path.insert(1, str(CACHE))
    import pytest
    import torch

    from tests.support.tiny_models import own_logits, plain_loss, scored_rows, tiny_model, tiny_tokenizer

    from .test_axolotl import rows_of

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = tiny_model(vocab_size=320, dtype=torch.float32)
        model.save_pretrained(root / "model")
        tiny_tokenizer().save_pretrained(root / "model")
        (root / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored_rows()))
        (root / "run.yaml").write_text(YAML.format(folder=folder) + RUNS[name])
        from axolotl.cli.config import load_cfg
        from axolotl.integrations.base import PluginManager
        from axolotl.train import train as axolotl_train

        cfg = load_cfg(str(root / "run.yaml"))
        data = PluginManager.get_instance().load_datasets(cfg, preprocess=False)
        *_, trainer = axolotl_train(cfg=cfg, dataset_meta=data)
        batch = rows_of(root / "scored.jsonl")
        expected = plain_loss(own_logits(model, batch), batch, kl_scale=0.0).item()
    logged = trainer.state.log_history[0]
    assert type(trainer).__name__ == "DSSAxolotlTrainer"
    assert logged["ce"] == pytest.approx(expected, abs=1e-4)
    assert logged["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the model as it was loaded
    print(f"{name}: cross-entropy {logged['ce']:.5f}, the plain formula's {expected:.5f}, KL {logged['kl']:.1e}")


def main() -> None:
    if len(sys.argv) > 1:
        train(sys.argv[1])
        return
    install()
    quiet = {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }
    for name in RUNS:
        command = [sys.executable, "-m", "tests.integrations.with_axolotl", name]
        done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: failed\n{done.stderr[-3000:]}")
        print(done.stdout.strip().splitlines()[-1])
    print(f"{len(RUNS)} passed, 0 failed")


if __name__ == "__main__":
    main()
