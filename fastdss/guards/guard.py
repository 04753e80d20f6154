"""Guard models: what is rendered, which next tokens are the verdict, and the checks that make a guard trustworthy."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fastdss.chat.encoder import ChatEncoder, Conversation
from fastdss.errors import UserError
from fastdss.models.causal_lm import ignores_softcap
from fastdss.models.sources import check_source
from fastdss.prefix.cpu_linear import PackedWeights
from fastdss.prefix.engine import KeptHead, check_supported, reference_logits, tree_logits
from fastdss.prefix.tree import build_tree, shared_length

from .known import TINY, TINY_FOLDER, choose_spec, find_spec, read_config
from .spec import GuardSpec
from .token_head import TokenHeadModel, class_ids

_PROBE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there. How are you?"}]
_BRACKETED = re.compile(r"<[^<>\n]{2,60}>|\[/?[A-Z][A-Z_ ]+\]")


class GuardModel:
    """A causal LM of transformers, its tokenizer, and the spec that says how to read a verdict from it.

    Raises ``ValueError`` when a verdict word is missing, is no single token, or is no word of the model's vocabulary,
    and (with ``check=True``, one short forward) when the model's own verdict logits are not finite, or scoring through
    the prefix tree does not reproduce them.

    From call to call a guard keeps the keys and values of its template's head, and on a CPU where oneDNN is faster a
    prepacked second copy of the weights (``guard.packed.clear()`` frees it); both follow changes of the model.
    """

    def __init__(self, model: Any, tokenizer: Any, spec: GuardSpec, *, check: bool = True) -> None:
        if ignores_softcap(model):
            raise UserError(
                f"{spec.name}: this transformers lets {type(model).__name__} run on sdpa, which ignores its attention "
                "softcap: load it with attn_implementation='eager'"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.encoder = ChatEncoder(
            tokenizer, template=spec.template, template_kwargs=spec.template_kwargs, messages=spec.messages
        )
        self.verdict_ids = self._verdict_ids()
        self.token_ids = [*self.verdict_ids, *chain.from_iterable(self._field_ids())]
        self.packed = PackedWeights()
        self.head = KeptHead(self._head_ids())
        self._delimiters = self._delimiter_pattern()
        if check:
            self._check_tree()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        spec: GuardSpec | str | None = None,
        revision: str | None = None,
        dtype: Any = "auto",
        device_map: Any = None,
        gguf_file: str | None = None,
        check: bool = True,
    ) -> Self:
        """Load a guard. No remote code runs, nothing is unpickled (weights are safetensors or GGUF).

        ``spec`` is a ``GuardSpec``, or the name of a known one; else it is chosen by id or folder name, config and chat
        template, and ``ValueError`` names the choices where these leave several.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        check_source("guard", str(name_or_path))
        source = {key: value for key, value in (("revision", revision), ("gguf_file", gguf_file)) if value is not None}
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, **source)
        if isinstance(spec, str):
            spec = find_spec(spec)
        if spec is None:
            config = read_config(str(name_or_path), **source)
            spec = choose_spec([str(name_or_path), gguf_file or ""], config, tokenizer.chat_template)
        loader: Any = TokenHeadModel if spec.token_head else AutoModelForCausalLM
        safetensors = True if gguf_file is None else None
        model = loader.from_pretrained(
            name_or_path,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=safetensors,
            trust_remote_code=False,  # else transformers asks on the terminal
            **source,
        )
        if ignores_softcap(model):
            model.set_attn_implementation("eager")
        return cls(model, tokenizer, spec, check=check)

    @classmethod
    def tiny(cls) -> Self:
        """The small guard inside this package: it only knows disclosure of contact details, for demos and tests."""
        if not (TINY_FOLDER / "model.safetensors").is_file():
            raise FileNotFoundError(f"the tiny guard's weights are not in {TINY_FOLDER}; reinstall fastdss")
        return cls.from_pretrained(str(TINY_FOLDER), spec=TINY, dtype=torch.float32)

    @property
    def max_tokens(self) -> int:
        """The longest rendering that the model was made for."""
        config = self.model.config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", None) or 2**31)

    @property
    def readouts(self) -> int:
        """Renderings that make one score: 1, unless earlier fields of the answer are summed out."""
        return len(self.spec.answers)

    def encode(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Token ids of whole renderings, ``readouts`` for each conversation; what is read is the next token."""
        if self.spec.token_head:
            return [self.encoder.encode_open(chat[:-1], [chat[-1]["content"]])[0] for chat in conversations]
        rows = [self.encoder.encode(conversations, suffix=answer) for answer in self.spec.answers]
        return list(chain.from_iterable(zip(*rows, strict=True)))

    def encode_prefixes(self, history: Conversation, response: str, ends: Sequence[int]) -> list[list[int]]:
        """Token ids of the renderings of ``response[:end]``, ``readouts`` for each end."""
        if self.spec.token_head:
            return self.encoder.encode_open(history, [response[:end] for end in ends])
        return self.encode([[*history, {"role": "assistant", "content": response[:end]}] for end in ends])

    def scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """P(safe) ``[K]`` from logits ``[K * readouts, R]`` of ``token_ids``; NaN where a logit is not finite.

        Where one rendering makes a score, further dimensions may come before these: ``[..., R] -> [...]``.
        """
        words = len(self.verdict_ids)
        if not self.spec.fields:
            return self._verdict(logits, temperature)
        sizes = [len(values) for _, values in self.spec.fields]
        counts = accumulate(sizes, operator.mul, initial=1)  # renderings that ask for a field, and for the verdict
        rows = logits.unflatten(0, (-1, self.readouts))
        *asked, last = rows.split(list(counts), dim=1)
        score = self._verdict(last[..., :words], temperature)
        columns = list(accumulate(sizes, initial=words))[:-1]
        for block, column, size in reversed(list(zip(asked, columns, sizes, strict=True))):
            shares = torch.softmax(block[..., column : column + size] / temperature, dim=-1)
            score = (shares * score.unflatten(-1, (-1, size))).sum(-1)
        return score[:, 0].clamp(max=1).masked_fill(~torch.isfinite(rows).all((1, 2)), float("nan"))

    def _verdict(self, logits: Tensor, temperature: float) -> Tensor:
        safe, unsafe, _ = map(len, self.spec.words)
        shares = torch.softmax(logits / temperature, dim=-1)
        score = shares[..., :safe].sum(-1) + self.spec.other_weight * shares[..., safe + unsafe :].sum(-1)
        score = score.clamp(max=1)  # a sum of rounded shares can pass 1 by a rounding, which no loss would take
        return score.masked_fill(~torch.isfinite(logits).all(-1), float("nan"))

    def quoted_delimiters(self, text: str) -> bool:
        """Whether ``text`` quotes one of the template's plain-text delimiters, which no tokenizer can tell apart."""
        return self._delimiters is not None and self._delimiters.search(text) is not None

    def _head_ids(self) -> list[int]:
        chats = [[{"role": role, "content": text} for role in ("user", "assistant")] for text in ("A", "z")]
        one, other = map(np.asarray, self.encode(chats)[:: self.readouts])
        return one[: shared_length(one, other)].tolist()

    def _verdict_ids(self) -> list[int]:
        rows = self.model.get_input_embeddings().weight.shape[0]
        known = len(self.tokenizer)
        if known > rows:
            raise UserError(f"{self.spec.name}: the tokenizer has {known} tokens, the model only {rows}")
        safe, unsafe, other = self.spec.words
        if not safe or not unsafe:
            raise UserError(f"{self.spec.name}: a guard needs a safe and an unsafe verdict")
        if not 0 <= self.spec.other_weight <= 1:
            raise UserError(
                f"{self.spec.name}: other_weight: expected a number in [0, 1], got {self.spec.other_weight}"
            )
        if self.spec.token_head:
            return class_ids(self.model.config, (*safe, *unsafe, *other))
        return self._distinct_ids((*safe, *unsafe, *other), len(self.spec.fields))

    def _field_ids(self) -> list[list[int]]:
        return [self._distinct_ids(values, depth) for depth, (_, values) in enumerate(self.spec.fields)]

    def _distinct_ids(self, words: Sequence[str], depth: int) -> list[int]:
        """The tokens of ``words``, the same wherever field ``depth`` (or, past the last, the verdict) is asked for."""
        counts = list(accumulate((len(values) for _, values in self.spec.fields), operator.mul, initial=1))
        asked = self.spec.answers[sum(counts[:depth]) :][: counts[depth]]
        ids = {word: {self._token_id(word, answer) for answer in asked} for word in words}
        if any(len(found) > 1 for found in ids.values()):
            raise UserError(f"{self.spec.name}: the tokens of {words} depend on the fields before them: {ids}")
        if len(set().union(*ids.values())) < len(words):
            raise UserError(f"{self.spec.name}: two verdict words are the same token: {ids}")
        return [found.pop() for found in ids.values()]

    def _token_id(self, word: str, answer: str) -> int:
        (before,), (after,) = (self.encoder.encode([_PROBE], suffix=suffix) for suffix in (answer, answer + word))
        same = after[:-1] == before or self._decode(after[:-1]) == self._decode(before)
        if not word or not same or after[-1] == getattr(self.tokenizer, "unk_token_id", None):
            pieces = self.tokenizer.convert_ids_to_tokens(after[len(before) :])
            place = f"the verdict {word!r} is not one token after {answer!r}"
            raise UserError(f"{self.spec.name}: {place}: its tokens there are {pieces}")
        return after[-1]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _delimiter_pattern(self) -> re.Pattern[str] | None:
        marks = "Q1Q", "Q2Q"
        chat = [{"role": role, "content": mark} for role, mark in zip(("user", "assistant"), marks, strict=True)]
        asked = not self.spec.token_head
        (text,) = self.encoder.render([chat], generation_prompt=asked, suffix=self.spec.answers[-1])
        pieces = re.split("|".join(marks), text)
        labels = [piece.partition("\n")[0] for piece in pieces[1:]]
        labels += [piece.rpartition("\n")[2] for piece in pieces[:-1]]
        labels += [self.spec.answer_prefix, *(prefix for prefix, _ in self.spec.fields)]
        labels = [label.strip() for label in labels if not self.encoder.control_strings(label)]
        anywhere = {found for found in _BRACKETED.findall(text) if not self.encoder.control_strings(found)}
        patterns = [_loose(found) for found in anywhere]
        patterns += [r"^[^\S\n]*" + _loose(label) for label in labels if re.search(r"[^\w\s]", label)]
        return re.compile("|".join(sorted(patterns)), re.IGNORECASE | re.MULTILINE) if patterns else None

    def _check_tree(self) -> None:
        history, response = _PROBE[:1], _PROBE[1]["content"]
        renderings = self.encode_prefixes(history, response, [2, 9, len(response)])
        longest = max(map(len, renderings))
        check_supported(self.model, longest)
        budget = max(longest // 2, 1)  # several forward passes: what one leaves in the store, the next must find
        ours = tree_logits(self.model, self.token_ids, [build_tree(renderings)], [0], budget=budget)
        own = reference_logits(self.model, self.token_ids, renderings)
        if not bool(torch.isfinite(own).all()):
            raise UserError(
                f"{self.spec.name}: the model's own verdict logits are not finite, so it could score nothing: its "
                f"weights are damaged, or {self.model.dtype} is too narrow for them"
            )
        error = (ours - own).abs().max().item()
        half = self.model.dtype in (torch.bfloat16, torch.float16)
        limit = (5e-2 if half else 1e-3) * (1 + own.abs().max().item())
        if not error <= limit:
            raise UserError(f"{self.spec.name}: prefix-tree logits miss the model's own by {error:.3g}")


def _loose(text: str) -> str:
    return r"\s*".join(map(re.escape, text.split()))
