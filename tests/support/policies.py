"""Tokenizers of tiny policies with chat templates of the kinds that people fine-tune; the templates are our own.

``<think>`` and ``<tool_call>`` are added tokens that are not special, as in Qwen's tokenizers, ``<b>`` one that no
template writes, as Gemma's HTML tags are.
"""

from __future__ import annotations

import copy
import functools

from .builders import make_tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eom|>", "<turn>", "</turn>"]
PLAIN = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<b>"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('user and assistant take turns') }}"
    "{% endif %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
# Reasoning in tags, only after the last question; calls as JSON in tags; results in a user turn.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "Tools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% set text = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if not thought and '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}<think>\n{{ thought.strip('\\n') }}\n</think>\n\n"
    "{{ text.lstrip('\\n') }}{% else %}{{ text }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{% if text or not loop.first %}{{ '\\n' }}{% endif %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{% if call.function.arguments is string %}{{ call.function.arguments }}"
    "{% else %}{{ call.function.arguments | tojson }}{% endif %}}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Hermes: every call in its own tags, the turn of a tool is its own.
HERMES = (
    "{% if tools %}<|im_start|>system\nYou may call: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'tool' %}<tool_response>\n{% endif %}"
    "{{ m.content }}{% if m.role == 'tool' %}\n</tool_response>{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\\n' }}<tool_call>\n"
    '{"arguments": {{ call.function.arguments | tojson }}, "name": "{{ call.function.name }}"}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Arguments in tags of their own, results as JSON, and another token at the end of a call than at the end of an answer.
TAGGED = (
    "{% for m in messages %}<|head|>{{ m.role }}<|/head|>"
    "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}"
    "{% for name, value in call.function.arguments.items() %}[{{ name }}]{{ value }}[/{{ name }}]{% endfor %}"
    "</tool_call>{% endfor %}{% if m.tool_calls %}<|eom|>{% else %}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>{% endif %}"
)
# As R1's: the prompt opens the reasoning, and what past answers thought is dropped from their text.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}{% else %}"
    "{% set text = m.content %}{% if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    "<|head|>{{ text }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|head|><think>\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "qwen3": QWEN3,
    "hermes": HERMES,
    "tagged": TAGGED,
    "r1": R1,
}


@functools.cache
def make_policy_tokenizer(template: str, kind: str = "llama3"):
    tokenizer = copy.deepcopy(make_tokenizer(kind))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>", "<|eot_id|>", *SPECIAL]})
    tokenizer.add_tokens(PLAIN)
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer
