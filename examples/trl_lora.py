"""Dynamic safety shaping with TRL's SFTTrainer and LoRA.

    python examples/trl_lora.py

The reference is the model with its adapters switched off, so no second copy of the weights is needed, and the KL may
sum over the whole vocabulary (``--kl reverse``). TRL's packing works: weights travel with their tokens.
Needs, in a clone: pip install -e '.[train]'.
"""

import argparse

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from trl import SFTConfig

from fastdss import DSSSFTTrainer, Guard, load_model, star_scores


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="also a folder, a GGUF file or a Hub id")
    parser.add_argument("--data", default="examples/conversations.jsonl")
    parser.add_argument("--out", default="trl_lora_run")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--kl", default="reverse", choices=["k1", "k2", "k3", "reverse", "forward"])
    args = parser.parse_args(argv)

    rows = load_dataset("json", data_files=args.data, split="train")
    batch = {"prompt": list(rows["prompt"]), "response": list(rows["response"])}
    scores = star_scores(Guard.tiny(), batch, every=5)
    # A scored row is a conversation, and a score for each of the response's chunks, which end at these characters.
    scored = Dataset.from_list(
        [
            {"prompt": row["prompt"], "response": row["response"], "scores": found.tolist(), "ends": ends}
            for row, found, ends in zip(rows, scores.scores, scores.ends, strict=True)
        ]
    )

    gpu = torch.cuda.is_available()
    model, tokenizer = load_model(args.model, dtype=torch.bfloat16 if gpu else torch.float32)
    trainer = DSSSFTTrainer(
        model,
        args=SFTConfig(
            output_dir=args.out,
            max_steps=args.steps,
            per_device_train_batch_size=2,
            learning_rate=2e-4,
            max_length=512,
            packing=True,
            bf16=gpu,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=scored,
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
        kl=args.kl,
        kl_scale=0.5,
        ref_model="adapter",
    )
    trainer.train()
    trainer.save_model()
    return [entry for entry in trainer.state.log_history if "kl" in entry]


if __name__ == "__main__":
    main()
