"""Guard models: what is rendered for them, which next tokens are the verdict, and the checks made before scoring."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fastdss.chat.encoder import ChatEncoder, Conversation
from fastdss.errors import UserError, UserTypeError, expect
from fastdss.models.causal_lm import ignores_softcap
from fastdss.models.classifier import is_bidirectional, separator, without_padding
from fastdss.models.sources import check_revision
from fastdss.prefix.cpu_linear import PackedWeights
from fastdss.prefix.engine import KeptHead, check_supported, reference_logits, tree_logits
from fastdss.prefix.in_use import cpu_by_default
from fastdss.prefix.tree import build_tree, shared_length

from .answers import Answers, compile_answers
from .classes import Classes
from .known import TINY, TINY_FOLDER
from .loading import load_guard
from .questions import make_encoders
from .sight import CHAT, check_seen, check_shown, check_sight
from .spec import GuardSpec
from .tokens import PROBE, tokens_after

_WAY_OUT = "which check=False lets past this check; on the command line, --method per_prefix does both"
_BRACKETED = re.compile(r"<[^<>\n]{2,60}>|\[/?[A-Z][A-Z_ ]+\]")


class GuardModel:
    """``Guard`` without its streams, which belong to the star wing; the arguments are described there."""

    def __init__(self, model: Any, tokenizer: Any, spec: GuardSpec, *, check: bool = True) -> None:
        if not is_model(model):
            raise UserTypeError(f"model: expected a model of transformers, got {type(model).__name__}")
        expect_tokenizer("tokenizer", tokenizer)
        expect("spec", spec, GuardSpec, wanted="a GuardSpec (Guard.from_pretrained finds one by name)")
        if ignores_softcap(model):
            raise UserError(
                f"{spec.name}: this transformers lets {type(model).__name__} run on sdpa, which ignores its attention "
                "softcap: load it with attn_implementation='eager'"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.bidirectional = spec.head == "sequence" and is_bidirectional(model)
        self.separator = separator(model, tokenizer) if self.bidirectional else None
        self.encoders = make_encoders(spec, tokenizer)
        self.encoder = self.encoders[0]
        only_response = getattr(spec.messages, "turns", None) == "response"
        self._unseen: dict[str, str] = {}
        for encoder in self.encoders:
            self._unseen |= check_sight(spec.name, encoder, generation_prompt=self._asked, only_response=only_response)
        self.answers = self._answers()
        self.token_ids = self.answers.token_ids
        self.packed = PackedWeights()
        self.head = KeptHead([] if self.bidirectional else self._head_ids())
        self._delimiters = self._delimiter_pattern()
        self._checked = False
        if check:
            self.check_tree()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        spec: GuardSpec | str | None = None,
        options: Mapping[str, Any] | None = None,
        revision: str | None = None,
        dtype: Any = "auto",
        device_map: Any = None,
        quantization_config: Any = None,
        gguf_file: str | None = None,
        check: bool = True,
    ) -> Self:
        """Load a guard by its folder, its Hub id, or ``"tiny"``. No remote code runs and nothing is unpickled.

        Args:
            name_or_path: the folder, the Hub id, or ``"tiny"``; weights are safetensors or GGUF.
            spec: a ``GuardSpec``, the name of a known one, a YAML file or ``FILE.py:NAME``; None: it is chosen by id or
                folder name, config and chat template.
            options: changes to the spec, see ``with_options``.
            revision: a commit, tag or branch on the Hub.
            dtype: the type of the weights; ``"auto"``: the type that they have in the file.
            device_map: as in transformers.
            quantization_config: as in transformers (bitsandbytes, torchao, fp8, …).
            gguf_file: the name of a GGUF file in the folder or the Hub repository.
            check: as in ``Guard``.

        Returns:
            Guard: ready to score.

        Raises:
            ValueError: where no spec fits, or several do (the message names them).
        """
        if name_or_path == "tiny" and spec is None:
            check_revision("revision", name_or_path, revision)
            return cls.tiny()
        loaded = load_guard(
            name_or_path,
            spec=spec,
            options={} if options is None else options,
            revision=revision,
            gguf_file=gguf_file,
            how={"dtype": dtype, "device_map": device_map, "quantization_config": quantization_config},
        )
        return cls(*loaded, check=check)

    @classmethod
    def tiny(cls) -> Self:
        """The small guard inside this package, for demos and tests: it only detects disclosed contact details.

        Returns:
            Guard: in float32, on the CPU.

        Raises:
            FileNotFoundError: where the package was installed without the guard's weights.
        """
        if not (TINY_FOLDER / "model.safetensors").is_file():
            raise FileNotFoundError(f"the tiny guard's weights are not in {TINY_FOLDER}; reinstall fastdss")
        return cls.from_pretrained(str(TINY_FOLDER), spec=TINY, dtype=torch.float32)

    def __repr__(self) -> str:
        kind, verdicts = type(self.model).__name__, f"{self.spec.safe!r} against {self.spec.unsafe!r}"
        device, dtype = self.model.device, str(self.model.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({self.spec.name}: {kind}, {dtype} on {device}, {verdicts})"

    @property
    def max_tokens(self) -> int:
        """The number of tokens in the longest rendering that the model was made for."""
        config = self.model.config.get_text_config(decoder=not self.bidirectional)
        longest = int(getattr(config, "max_position_embeddings", None) or 2**31)
        if self.bidirectional:  # models like RoBERTa number positions from the id after the padding's on
            table = getattr(getattr(self.model.base_model, "embeddings", None), "position_embeddings", None)
            padding = getattr(table, "padding_idx", None)
            longest -= 0 if padding is None else padding + 1
        return longest

    @property
    def readouts(self) -> int:
        """How many renderings make one score: 1, unless several questions are asked or a spec's answers are read at
        several places."""
        return len(self.encoders) * len(self.answers.tails)

    def encode(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Token ids of whole renderings, ``readouts`` for each conversation; the next token after each is read."""
        for chat in conversations if self._unseen else ():
            check_seen(self.spec.name, self._unseen, chat)
        if self.spec.head == "token":
            return [self.encoder.encode_open(chat[:-1], [chat[-1]["content"]])[0] for chat in conversations]
        asked = [self._encoded(encoder, conversations) for encoder in self.encoders]
        return [[*ids, *tail] for rows in zip(*asked, strict=True) for ids in rows for tail in self.answers.tails]

    def encode_prefixes(self, history: Conversation, response: str, ends: Sequence[int]) -> list[list[int]]:
        """Token ids of the renderings of ``response[:end]``, ``readouts`` for each end, which ascend."""
        check_seen(self.spec.name, self._unseen, history)
        longest = [*history, {"role": "assistant", "content": response[: ends[-1]]}]
        for encoder in self.encoders:
            check_shown(self.spec.name, encoder, longest, generation_prompt=self._asked)
        if self.spec.head == "token":
            return self.encoder.encode_open(history, [response[:end] for end in ends])
        return self.encode([[*history, {"role": "assistant", "content": response[:end]}] for end in ends])

    def scores(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """P(safe) ``[K]`` from logits ``[K * readouts, R]`` of ``token_ids``; NaN where a logit is not finite.

        Where one rendering makes a score, the logits may have any leading dimensions: ``[..., R] -> [...]``.
        """
        shape = (len(self.encoders), len(self.answers.tails))
        rows = logits.unflatten(0, (-1, *shape)) if self.readouts > 1 else logits[..., None, None, :]
        score = self.answers.scores(rows, temperature).amin(-1)
        return score.masked_fill(~torch.isfinite(rows).all((-1, -2, -3)), float("nan"))

    def quoted_delimiters(self, text: str) -> bool:
        """Whether ``text`` quotes a delimiter that the template writes as plain text, such as "User:".

        To the guard the two are the same tokens, so such a text may look like a turn of its own.
        """
        return self._delimiters is not None and self._delimiters.search(text) is not None

    @property
    def _asked(self) -> bool:
        """Whether the rendering ends with the template's prompt for an answer."""
        return self.spec.head == "words"

    def _encoded(self, encoder: ChatEncoder, conversations: Sequence[Conversation]) -> list[list[int]]:
        rows = encoder.encode(conversations, generation_prompt=self._asked, suffix=self.spec.begins)
        causal = self.spec.head == "sequence" and not self.bidirectional
        return [without_padding(self.model, ids) for ids in rows] if causal else rows

    def _head_ids(self) -> list[int]:
        """The tokens with which all renderings begin, found by rendering two conversations that differ at once."""
        chats = [[{"role": role, "content": text} for role in ("user", "assistant")] for text in ("A", "z")]
        one, other = map(np.asarray, self.encode(chats)[:: self.readouts])
        found: list[int] = one[: shared_length(one, other)].tolist()
        return found

    def _answers(self) -> Answers | Classes:
        rows = self.model.get_input_embeddings().weight.shape[0]
        known = len(self.tokenizer)
        if known > rows:
            raise UserError(f"{self.spec.name}: the tokenizer has {known} tokens, the model only {rows}")
        if self.spec.head != "words":
            return Classes(self.spec, self.model.config)
        first, *others = [
            compile_answers(self.spec, partial(tokens_after, encoder, self.spec), self.tokenizer)
            for encoder in self.encoders
        ]
        if any(other.root != first.root for other in others):
            raise UserError(f"{self.spec.name}: the tokens of its answers differ between its questions")
        return first

    def _delimiter_pattern(self) -> re.Pattern[str] | None:
        """A pattern for what the template writes as plain text: words in brackets anywhere, labels beside a turn's text
        or in the answer at the beginning of a line."""
        marks = [turn["content"] for turn in CHAT]
        (text,) = self.encoder.render([CHAT], generation_prompt=self._asked, suffix=self.spec.begins)
        pieces = re.split("|".join(marks), text)
        labels = [piece.partition("\n")[0] for piece in pieces[1:]]
        labels += [piece.rpartition("\n")[2] for piece in pieces[:-1]]
        labels += [self.spec.answer_prefix, *(prefix for prefix, _ in self.spec.fields)]
        labels = [line.strip() for label in labels for line in label.split("\n")]
        labels = [label for label in labels if label and not self.encoder.control_strings(label)]
        anywhere = {found for found in _BRACKETED.findall(text) if not self.encoder.control_strings(found)}
        patterns = [_loose(found) for found in anywhere]
        patterns += [r"^[^\S\n]*" + _loose(label) for label in labels if re.search(r"[^\w\s]", label)]
        return re.compile("|".join(sorted(patterns)), re.IGNORECASE | re.MULTILINE) if patterns else None

    @cpu_by_default()
    def check_tree(self) -> None:
        """Refuse a model whose verdict logits are not finite, or differ when computed through the prefix tree.

        It is asked once: at construction, or else before the tree is used without being asked for by name.
        """
        if self._checked:
            return
        self._check_tree()
        self._checked = True

    def _check_tree(self) -> None:
        history, response = PROBE[:1], PROBE[1]["content"]
        renderings = self.encode_prefixes(history, response, [2, 9, len(response)])
        longest = max(map(len, renderings))
        ours = None if self.bidirectional else self._tree_logits(renderings, longest)
        own = reference_logits(self.model, self.token_ids, renderings, separator=self.separator)
        if not bool(torch.isfinite(own).all()):
            raise UserError(
                f"{self.spec.name}: the model's own verdict logits are not finite, so it could score nothing: its "
                f"weights are damaged, or {self.model.dtype} is too narrow for them"
            )
        if ours is None:
            return
        error = (ours - own).abs().max().item()
        half = self.model.dtype in (torch.bfloat16, torch.float16)
        limit = (5e-2 if half else 1e-3) * (1 + own.abs().max().item())
        if not error <= limit:
            raise UserError(
                f"{self.spec.name}: prefix-tree logits miss the model's own by {error:.3g}, so it computes something "
                f"that the tree does not know; use method='per_prefix', {_WAY_OUT}"
            )

    def _tree_logits(self, renderings: list[list[int]], longest: int) -> Tensor:
        # A small budget makes several forward passes, of which the second needs what the first left in the store.
        budget = max(longest // 2, 1)
        try:
            check_supported(self.model, longest)
            return tree_logits(self.model, self.token_ids, [build_tree(renderings)], [0], budget=budget)
        except ValueError as error:
            if "per_prefix" not in str(error):
                raise
            raise UserError(f"{self.spec.name}: {error}, {_WAY_OUT}") from error


def is_model(given: Any) -> bool:
    """Whether ``given`` has what every model of transformers has."""
    return hasattr(given, "config") and callable(given)


def expect_tokenizer(name: str, given: Any) -> None:
    """Refuse what is no tokenizer of transformers, such as the name of one."""
    if not (callable(given) and hasattr(given, "apply_chat_template")):
        raise UserTypeError(f"{name}: expected a tokenizer of transformers, got {type(given).__name__}")


def _loose(text: str) -> str:
    """A pattern for ``text`` with any white space between its words."""
    return r"\s*".join(map(re.escape, text.split()))
