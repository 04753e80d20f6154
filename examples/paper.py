"""The settings of the paper: Llama-3.2-1B-Instruct, Granite Guardian 3.1 2B, M = 5, k2, lambda 0.5, lr 5e-6.

    python examples/paper.py --data my_conversations.jsonl
    accelerate launch examples/paper.py --data my_conversations.jsonl

``--data`` is a JSONL file with prompt and response; without it, a thousand rows of databricks-dolly-15k stand in for
data that nobody has checked. Both models come from the Hugging Face Hub (the Llama needs its licence accepted there).
Source: Peng et al., "Shape it Up! Restoring LLM Safety during Finetuning", arXiv 2505.17196: 10 epochs, batches of 32.
Needs, in a clone: pip install -e '.[train]', and a GPU of 24 GB or more.
"""

import argparse

import torch
from datasets import load_dataset
from transformers import TrainingArguments

from fastdss import DSSTrainer, Guard, GuardSpec, add_reference_logprobs, load_model, prepare_dss_dataset, star_scores

# Granite Guardian answers "Yes, this is harmful" or "No"; the question is a variable of its own chat template.
GRANITE_GUARDIAN = GuardSpec(
    "granite-guardian-3.1", template_kwargs={"guardian_config": {"risk_name": "harm"}}, safe="No", unsafe="Yes"
)


def conversations(path: str | None) -> dict[str, list[str]]:
    if path is not None:
        rows = load_dataset("json", data_files=path, split="train")
        return {"prompt": list(rows["prompt"]), "response": list(rows["response"])}
    rows = load_dataset("databricks/databricks-dolly-15k", split="train[:1000]")
    prompts = [f"{row['instruction']}\n\n{row['context']}".strip() for row in rows]
    return {"prompt": prompts, "response": list(rows["response"])}


def load_guard(name: str) -> Guard:
    if name == "tiny":
        return Guard.tiny()
    guard = Guard.from_pretrained(name, spec=GRANITE_GUARDIAN)
    guard.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return guard


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="meta-llama/Llama-3.2-1B-Instruct")
    parser.add_argument("--guard", default="ibm-granite/granite-guardian-3.1-2b", help="or 'tiny', to try it out")
    parser.add_argument("--data", help="JSONL with prompt and response")
    parser.add_argument("--out", default="paper_run")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=8, help="rows per device and micro-batch; 32 a step in all")
    args = parser.parse_args(argv)

    training = TrainingArguments(
        output_dir=args.out,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        learning_rate=5e-6,
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=True,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
    )
    training.gradient_accumulation_steps = max(1, 32 // (args.batch_size * training.world_size))

    with training.main_process_first(desc="scoring"):
        scores = star_scores(load_guard(args.guard), conversations(args.data), every=5, unit="word", progress=True)
    model, tokenizer = load_model(args.model)
    model = model.to(training.device)
    data = prepare_dss_dataset(scores, tokenizer, max_length=1024)
    with torch.autocast(training.device.type, dtype=torch.bfloat16, enabled=training.bf16):
        data = add_reference_logprobs(data, model, cache_dir=f"{args.out}/reference", progress=True)

    trainer = DSSTrainer(
        model=model, args=training, train_dataset=data, processing_class=tokenizer, kl="k2", kl_scale=0.5
    )
    result = trainer.train()
    trainer.save_model()
    return result.metrics


if __name__ == "__main__":
    main()
