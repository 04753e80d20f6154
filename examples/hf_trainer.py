"""Dynamic safety shaping with Hugging Face's Trainer.

    python examples/hf_trainer.py
    torchrun --nproc-per-node 8 examples/hf_trainer.py --model meta-llama/Llama-3.2-1B-Instruct --data my.jsonl

Full fine-tuning with k2 (the paper's KL): the reference runs once before training, so a step costs what plain
supervised fine-tuning costs. Needs, in a clone: pip install -e '.[train]'.
"""

import argparse

import torch
from datasets import load_dataset
from transformers import TrainingArguments

from fastdss import DSSTrainer, Guard, add_reference_logprobs, load_model, prepare_dss_dataset, star_scores


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="also a folder, a GGUF file or a Hub id")
    parser.add_argument("--data", default="examples/conversations.jsonl")
    parser.add_argument("--out", default="hf_trainer_run")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args(argv)

    training = TrainingArguments(
        output_dir=args.out,
        max_steps=args.steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=2e-5,
        warmup_steps=2,
        bf16=torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=10,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    rows = load_dataset("json", data_files=args.data, split="train")
    batch = {"prompt": list(rows["prompt"]), "response": list(rows["response"])}
    scores = star_scores(Guard.tiny(), batch, every=5)

    model, tokenizer = load_model(args.model)
    model = model.to(training.device)
    data = prepare_dss_dataset(scores, tokenizer, max_length=1024)
    with torch.autocast(training.device.type, dtype=torch.bfloat16, enabled=training.bf16):
        data = add_reference_logprobs(data, model, cache_dir=f"{args.out}/reference")
    split = data.train_test_split(test_size=0.2, seed=0)

    trainer = DSSTrainer(
        model=model,
        args=training,
        train_dataset=split["train"],
        eval_dataset=split["test"],
        processing_class=tokenizer,
        kl="k2",
        kl_scale=0.5,
    )
    trainer.train()
    trainer.save_model()
    return trainer.evaluate()


if __name__ == "__main__":
    main()
