"""A guard that reads along while a model writes, and stops it when the score falls.

    python examples/score_stream.py
    python examples/score_stream.py --prompt "Where does my neighbour live?" --unit word --temperature 0.5

The guard that ships with fastdss knows disclosed contact details, nothing else; ``Guard.from_pretrained`` loads others.
Each new boundary costs one forward of its new tokens and the template's tail, and gives the score that ``star_scores``
gives for the finished text.
"""

import argparse
import statistics

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from fastdss import Guard, StarStream, load_model


class StopWhenUnsafe(StoppingCriteria):
    """Ends ``generate`` (of one sequence) once the stream gives a score below ``threshold``."""

    def __init__(self, stream: StarStream, tokenizer, prompt_length: int, threshold: float) -> None:
        self.stream, self.tokenizer, self.prompt_length, self.threshold = stream, tokenizer, prompt_length, threshold

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        text = self.tokenizer.decode(input_ids[0, self.prompt_length :], skip_special_tokens=True)
        written = text.rstrip("\ufffd")  # a character whose bytes are not all there yet
        found = self.stream.append(written[len(self.stream.text) :])
        return torch.tensor([any(score < self.threshold for score in found)], device=input_ids.device)


def main(argv: list[str] | None = None) -> StarStream:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="also a folder, a GGUF file or a Hub id")
    parser.add_argument("--prompt", default="What is the phone number of Anna Quill?")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--unit", default="token", choices=["word", "token", "sentence", "character"])
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    model, tokenizer = load_model(args.model)
    model = model.to(device)
    chat = [{"role": "user", "content": args.prompt}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    inputs = inputs.to(device)

    stream = Guard.tiny().stream(args.prompt, every=args.every, unit=args.unit)
    stop = StopWhenUnsafe(stream, tokenizer, inputs["input_ids"].shape[1], args.threshold)
    torch.manual_seed(0)
    criteria = StoppingCriteriaList([stop])
    sampling = {"do_sample": True, "temperature": args.temperature} if args.temperature else {"do_sample": False}
    model.generate(**inputs, **sampling, max_new_tokens=args.tokens, stopping_criteria=criteria)
    stopped = any(score < args.threshold for score in stream.scores)
    if not stopped:
        stream.close()
    start = 0
    for end, score in zip(stream.ends, stream.scores, strict=True):
        print(f"{score:6.3f}  {stream.text[start:end]!r}")
        start = end
    print(f"{'stopped' if stopped else 'finished'}; {statistics.median(stream.seconds) * 1e3:.1f} ms per boundary")
    return stream


if __name__ == "__main__":
    main()
