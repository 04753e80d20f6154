"""Dynamic safety shaping with FSDP2, sharded over the processes that torchrun starts.

    torchrun --nproc-per-node 2 examples/fsdp2.py

``enable_dss`` comes before ``fully_shard``. The head may be a unit of its own, as here, or share one: the loss runs
inside the head's call, where its weight is whole. Needs, in a clone: pip install -e '.[train]'.
"""

import argparse
import os

import torch
import torch.distributed as dist
from datasets import load_dataset
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from fastdss import DSSCollator, Guard, add_reference_logprobs, enable_dss, load_model, prepare_dss_dataset, star_scores


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="also a folder, a GGUF file or a Hub id")
    parser.add_argument("--data", default="examples/conversations.jsonl")
    parser.add_argument("--out", default="fsdp2_run.pt")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=4, help="rows per process")
    args = parser.parse_args(argv)

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    world, device = dist.get_world_size(), torch.device(kind, int(os.environ["LOCAL_RANK"]) if kind == "cuda" else 0)
    if kind == "cuda":
        torch.cuda.set_device(device)

    model, tokenizer = load_model(args.model)
    model = enable_dss(model.to(device))
    mesh = init_device_mesh(kind, (world,))
    head = model.get_output_embeddings()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if head.weight is not model.get_input_embeddings().weight:  # tied weights belong to one unit: the root
        fully_shard(head, mesh=mesh)
    fully_shard(model, mesh=mesh)

    rows = load_dataset("json", data_files=args.data, split="train")
    batch = {"prompt": list(rows["prompt"]), "response": list(rows["response"])}
    data = prepare_dss_dataset(star_scores(Guard.tiny(), batch, every=5), tokenizer, max_length=1024)
    data = add_reference_logprobs(data, model)  # shared by ranks

    sampler = DistributedSampler(data, shuffle=True, drop_last=True)
    collator = DSSCollator(tokenizer.pad_token_id or 0)
    loader = DataLoader(data, args.batch_size, sampler=sampler, collate_fn=collator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    model.train()
    losses: list[float] = []
    for epoch in range(args.steps):
        sampler.set_epoch(epoch)
        for batch in loader:
            batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
            items = (batch["labels"][:, 1:] != -100).sum()
            dist.all_reduce(items)  # labels on all ranks; FSDP averages gradients, hence the factor
            output = model(**batch, num_items_in_batch=items)
            (output.loss * world).backward()
            optimizer.step()
            optimizer.zero_grad()
            loss = output.loss.detach().clone()
            dist.all_reduce(loss)
            losses.append(loss.item())
            if dist.get_rank() == 0:
                print(f"step {len(losses):3}  loss {losses[-1]:.4f}")
            if len(losses) == args.steps:
                break
        if len(losses) == args.steps:
            break
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    if dist.get_rank() == 0:
        torch.save(state, args.out)
    dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()
