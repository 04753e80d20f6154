"""SmolLM2's hidden states of English prose, its head and the labels, in one file of 41 MiB: for the benchmark's cases
of text on a machine that has no weights and cannot reach the Hub.

    python benchmarks/text_states.py          # where the weights are; then carry benchmarks/text_states.npz
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from loss_methods import TEXT_STATES, planes, smollm2_on_prose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    args = parser.parse_args()
    hidden, head, labels = smollm2_on_prose(args.tokens)
    np.savez_compressed(TEXT_STATES, hidden=planes(hidden), head=planes(head), labels=labels.to(torch.int32).numpy())
    print(f"{TEXT_STATES}: {len(labels)} tokens, {TEXT_STATES.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
