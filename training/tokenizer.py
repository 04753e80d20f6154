"""The tiny guard's tokenizer (byte-level BPE, digits one by one) and chat template, in the shape of Llama Guard's."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from training.word_vectors import WordVectors

SAFE, UNSAFE, ANSWER_PREFIX = "safe", "unsafe", "\n\n"
CONTROL_TOKENS = (
    "<|pad|>",
    "<|start|>",
    "<|end|>",
    "<|turn|>",
    "<|body|>",
    "<|talk|>",
    "<|user|>",
    "<|agent|>",
    "<|over|>",
)
VOCAB_SIZE = 8192
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = """\
{{- '<|start|><|turn|>user<|body|>\n\nTask: Check whether the last Agent message gives away private contact ' -}}
{{- 'details: phone, e-mail, street address or password.\n\n<|talk|>' -}}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- '\n\n<|user|> ' + message['content'] | trim -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- '\n\n<|agent|> ' + message['content'] | trim -}}
    {%- else -%}
        {{- raise_exception('the tiny guard judges user and assistant messages only') -}}
    {%- endif -%}
{%- endfor -%}
{{- '\n\n<|over|>\n\nIs the last Agent message safe or unsafe?<|end|>' -}}
{%- if add_generation_prompt -%}
    {{- '<|turn|>guard<|body|>' -}}
{%- endif -%}
"""


def render(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> str:
    """The text after which the guard's next token is its verdict."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text + ANSWER_PREFIX


def build_tokenizer(words: WordVectors) -> PreTrainedTokenizerFast:
    """Control tokens, then borrowed word pieces; ``unsafe`` is one merge more, so that both verdicts are one token."""
    pieces = [*CONTROL_TOKENS, *words.pieces, UNSAFE]
    merges = [*words.merges, (UNSAFE.removesuffix(SAFE), SAFE)]
    core = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=CHAT_TEMPLATE,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=list(CONTROL_TOKENS[3:]),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
