"""Templates with the traits of the vendors' own: which variables they take, how turns and the answer are framed.

The vendors' texts are not here; what is pinned is what follows the conversation, and that the conversation is seen.
"""

LLAMA_GUARD = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    "{{ '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\ncategories: S1\n\n' }}"
    "{% for m in messages %}{{ {'user': 'User', 'assistant': 'Agent'}[m['role']] + ': ' + CONTENT + '\n\n' }}"
    "{% endfor %}{{ 'safe or unsafe?<|eot_id|><|start_header_id|>assistant<|end_header_id|>' }}"
)
LLAMA_GUARD_8B = LLAMA_GUARD.replace("CONTENT", "m['content'].strip()")
LLAMA_GUARD_1B = LLAMA_GUARD.replace(
    "CONTENT", "(m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join | trim)"
)
LLAMA_GUARD_4 = (
    LLAMA_GUARD_1B.replace("start_header_id", "header_start")
    .replace("end_header_id", "header_end")
    .replace("eot_id", "eot")
)
LLAMA_GUARD_1_2 = (
    "{{ bos_token + '[INST] categories: O1\n\n' }}{% for m in messages %}"
    "{{ {'user': 'User', 'assistant': 'Agent'}[m['role']] + ': ' + m['content'] + '\n\n' }}{% endfor %}"
    "{{ 'safe or unsafe? [/INST]' }}"
)
LLAMA_CHAT = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
GRANITE_ROLES = ["<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"]
GRANITE_END = "{{ '<|endoftext|>\n<|start_of_role|>assistant<|end_of_role|>' }}"
GRANITE_3_0 = (
    "{{ '<|start_of_role|>user<|end_of_role|>risk: ' + guardian_config['risk_name'] + '\nUser Message: ' "
    "+ messages[-2].content + '\nAssistant Message: ' + messages[-1].content + '\nYes or No?' }}" + GRANITE_END
)
GRANITE_3_2 = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('a risk by this name is unknown') }}{% endif %}"
    "{{ '<|start_of_role|>user<|end_of_role|>risk: ' + guardian_config['risk_name'] + '\n' }}"
    "{% for message in messages %}{% if message.role not in ['user', 'assistant'] %}{{ raise_exception('role') }}"
    "{% endif %}{{ message.role.capitalize() + ' Message: ' + message.content + '\n' }}{% endfor %}" + GRANITE_END
)
GRANITE_TURNS = (
    "{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] "
    "+ '<|endoftext|>\n' }}{% endfor %}"
)
GRANITE_3_3 = (
    GRANITE_TURNS + "{{ '<|start_of_role|>judge_protocol<|end_of_role|>' + guardian_config['criteria_id'] "
    "+ '<|endoftext|>\n<|start_of_role|>judge' + ('{think}' if think else '{no_think}') + '<|end_of_role|>' }}"
)
GRANITE_4 = GRANITE_TURNS + "{{ '<|start_of_role|>assistant<|end_of_role|>' }}"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
QWEN_GUARD = (
    "{{ '<|im_start|>user\nSafety: Safe, Unsafe or Controversial\n' }}{% for m in messages %}"
    "{{ ('ASSISTANT' if m['role'] == 'assistant' else 'USER') + ': ' + m['content'] + '\n\n' }}{% endfor %}"
    "{{ '<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
)
SHIELDGEMMA = (
    "{{ bos_token + 'Human Question: ' + messages[-2].content + '\n<end_of_turn>\n<start_of_turn>\nChatbot Response: ' "
    "+ messages[-1].content + '\n<end_of_turn>\n\n* ' + guideline + '\n\n===\n\nanswer correctly.\n\n' }}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] "
    "+ '<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' }}"
)
GEMMA_PARTS = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'].replace('assistant', 'model') + '\n' }}"
    "{% for part in m['content'] %}{{ part['text'] | trim }}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{{ '<start_of_turn>user\nclassify ' + request_categories + '<end_of_turn>\n<start_of_turn>model\n' }}"
)
GPT_OSS = (
    "{{ '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}{% for m in messages %}"
    "{{ '<|start|>' + {'system': 'developer'}.get(m['role'], m['role']) + '<|message|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}{{ '<|start|>assistant' }}"
)
