"""Dynamic safety shaping in a training loop of your own.

    python examples/custom_loop.py

Scores the conversations with the small guard that ships with fastdss (it knows disclosed contact details, nothing
else), computes the reference's log-probabilities once, and trains with the DSS loss.
Needs, in a clone: pip install -e '.[train]'.
"""

import argparse

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader

from fastdss import DSSCollator, Guard, add_reference_logprobs, enable_dss, load_model, prepare_dss_dataset, star_scores


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="also a folder, a GGUF file or a Hub id")
    parser.add_argument("--data", default="examples/conversations.jsonl")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=2)
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    rows = load_dataset("json", data_files=args.data, split="train")
    batch = {"prompt": list(rows["prompt"]), "response": list(rows["response"])}
    scores = star_scores(Guard.tiny(), batch, every=5)

    model, tokenizer = load_model(args.model)
    model = enable_dss(model.to(device))
    data = prepare_dss_dataset(scores, tokenizer, max_length=1024)
    data = add_reference_logprobs(data, model)

    loader = DataLoader(data, args.batch_size, shuffle=True, collate_fn=DSSCollator(tokenizer.pad_token_id or 0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    model.train()
    losses, waiting = [], []
    while len(losses) < args.steps:
        for batch in loader:
            waiting.append(
                {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
            )
            if len(waiting) < args.accumulate:
                continue
            # One divisor for all micro-batches makes accumulation equal to one large batch.
            items = sum((batch["labels"][:, 1:] != -100).sum() for batch in waiting)
            outputs = []
            for micro in waiting:
                outputs.append(model(**micro, num_items_in_batch=items))
                outputs[-1].loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ce, kl = (sum(getattr(output, name) for output in outputs).item() for name in ("ce", "kl"))
            losses.append(ce + kl)
            waiting = []
            print(f"step {len(losses):3}  loss {ce + kl:.4f}  ce {ce:.4f}  kl {kl:.4f}")
            if len(losses) == args.steps:
                break
    return losses


if __name__ == "__main__":
    main()
