"""Chat templates as transformers renders them: that is what a served model is asked with.

The templates are shortened from those that models have: LLaMA 3's, Qwen 2.5's, Mistral's, Hermes', SmolLM3's.
"""

import json
from dataclasses import replace
from datetime import datetime

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_patch.data.chat_template import compile_chat_template
from megatron_patch.data.conversation import chat_turns, tools
from megatron_patch.data.prompts import encoder
from megatron_patch.data.rendered import TRAINING_DATE, chat_renderer
from megatron_patch.errors import UserError

WEATHER = {
    "type": "function",
    "function": {
        "name": "查询天气",
        "description": "查询城市的天气 <今天> & '明天'",
        "parameters": {
            "type": "object",
            "properties": {"城市": {"type": "string", "enum": ["北京", "上海"]}, "days": {"type": "integer", "default": 1}},
            "required": ["城市"],
        },
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "查询天气", "arguments": {"城市": "北京", "days": 2}}}
RECORD = {
    "messages": [
        {"role": "system", "content": "你是助手。"},
        {"role": "user", "content": "北京明天热吗？"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "查询天气", "tool_call_id": "call00001", "content": '{"温度": 31.5}'},
        {"role": "assistant", "content": " 31.5 度。 "},
        {"role": "user", "content": "Thanks </s>"},
        {"role": "assistant", "content": "不客气"},
    ],
    "tools": [WEATHER],
}
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at once") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
MISTRAL = """{{- bos_token }}
{%- if tools is defined and tools is not none %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}
    {%- if message['role'] in ('user', 'system') %}
        {{- '[INST] ' + message['content'] + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ', ' }}{%- else %}{{- ']' + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content']|trim + eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', ' }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""
HERMES = """{{ bos_token }}{% macro json_to_python_type(json_spec) %}
{%- set basic_type_map = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
{%- if basic_type_map[json_spec.type] is defined %}{{- basic_type_map[json_spec.type] }}
{%- elif json_spec.type == "array" %}{{- "list[" + json_to_python_type(json_spec|items) + "]" }}
{%- else %}{{- "Any" }}{%- endif %}
{%- endmacro %}
{% for tool in tools or [] %}
{%- set tool = tool.function %}
{{- '{"type": "function", "function": ' }}
{{- '{"name": "' + tool.name + '", "description": "' + tool.name + '(' }}
{%- for name, fields in tool.parameters.properties|items %}
{{- name + ": " + json_to_python_type(fields) }}{%- if not loop.last %}{{- ", " }}{%- endif %}
{%- endfor %}{{- ")" }} {{ tool.description }}", "parameters": {{ tool.parameters | tojson }}}}
{% endfor %}
{%- set ns = namespace(seen=0) %}
{%- for message in messages %}
{%- if message.role == 'tool' and (loop.previtem and loop.previtem.role == 'assistant') %}{% continue %}{% endif %}
<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>{{ call | tojson(sort_keys=True, separators=(',', ':'), ensure_ascii=False) }}</tool_call>
{% endfor %}<|im_end|>
{%- set ns.seen = ns.seen + 1 %}
{% if ns.seen == 5 %}{% break %}{% endif %}
{% endfor %}
{{ ns.seen }}"""
SMOLLM = """{%- if add_generation_prompt is not defined %}{%- set add_generation_prompt = false %}{%- endif %}
{% for message in messages %}
    {% if message.role == "assistant" %}
        {% generation %}
        {% set said = message.content %}
<|im_start|>assistant
{{ said }}{{ message.tool_calls | tojson(ensure_ascii=True) if message.tool_calls }}<|im_end|>
        {% endgeneration %}
        {{- said }}
    {% else %}
<|im_start|>{{ message.role }}
{{ message.content }}{{ tools | tojson if tools and loop.first }}<|im_end|>
    {%- endif %}
{% endfor %}
{{ documents }}{{ documents is defined }}{{ unk_token }}{{ nothing }}{{ pad_token }}"""
TEMPLATES = {"llama 3": LLAMA_3, "qwen": QWEN, "mistral": MISTRAL, "hermes": HERMES, "smollm": SMOLLM}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("asks", [False, True])
def test_a_template_writes_what_it_writes_in_transformers(name, asks, tokenizer):
    own = replace(tokenizer, chat_template=TEMPLATES[name])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    turns = RECORD["messages"][: -1 if asks else None]
    for given in (RECORD["tools"], None):
        wanted, _ = render_jinja_template([turns], given, chat_template=TEMPLATES[name], add_generation_prompt=asks, **names)
        record = {"messages": turns, **({"tools": given} if given else {})}
        render = chat_renderer(own)
        assert render(chat_turns(record), asks, tools(record)) == wanted[0]


# One piece each of what a template's environment gives. `items` is a filter, `json` a text with all that is escaped.
PIECES = [
    "{{ 2.567 | round(precision=1, method='ceil') }}{{ messages | map(attribute='role') | map('length') | sum(start=2) }}",
    "{{ 'xax' | trim(chars='x') }}{{ 'a<' | escape | trim + '<' }}{{ 'a b c'.rsplit(sep=' ', maxsplit=1) }}",
    "{{ messages | tojson }}", "{{ messages[0] | tojson(indent='--') }}", "{{ [1.5, none, true, '<&\\'\"\\\\\n'] | tojson }}",
    "{{ {2: 'b', 1: ['北京 😀']} | tojson(true, 1, (' ,', ' : '), true) }}", "{{ (1, 2) | tojson }}",
    "{{ [] | tojson(indent=2) }}",
    "{{ messages | join(' + ', attribute='content') }}", "{{ messages | join(', ', 'role.upper') | length }}",
    "{{ [messages[2]] | join(attribute='tool_calls.0.function.name') }}", "{{ ['a', 'b'] | join(d='-') }}",
    "{{ '%s 于 2024 **%-5s** %d%%' % ('a', 'b', 3) }}", "{{ '%s=%5.1f' | format('x', 2.25) }}{{ '%(a)s' | format(a=1) }}",
    "{{ '{} in 2024 {a:>6}'.format(1, a='北') }}{{ '{0}{0}'.format('x') }}", "{{ 'x'.center(9) }}{{ 'x' | center(7) }}|",
    "{{ '7'.zfill(3) }}{{ 'a'.ljust(4) }}{{ 'a'.rjust(4) }}{{ 'a\\tb'.expandtabs(4) }}", "{{ 'a\nb' | indent(2, true) }}",
    "{{ [1, 2, 3] | batch(2, 'x') | list }}{{ [1, 2, 3] | slice(2) | list }}", "{{ 12345 | filesizeformat }}",
    "{{ dict(a=1, **{'b': 2}) }}{{ dict.fromkeys([1, 2], 3) }}", "{% set n = namespace(a=1) %}{% set n.b = [n.a] %}{{ n.b }}",
    "{% for i in range(9) if i % 2 %}{% if i > 5 %}{% break %}{% endif %}{{ loop.index }}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x }}", "{%- generation -%} a {%- endgeneration -%} b",
    "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}{% endfor %}",
    "{{ missing }}{{ missing is defined }}{{ none }}{{ true }}{{ 1 / 2 }}{{ (1, 'a') }}{{ {'a': [1]} }}",
    "a\n  {% if 1 %}\n b\n{% endif %}\n",
    "{{ messages[1].content[:2] ~ 3 ~ [1] }}{{ ('a', 'b')[1] }}{% set a, b = 1, 2 %}{{ a + b }}{{ 'a' in ['a'] }}",
    "{% macro m(x, y='z') %}{{ x }}{{ y }}{{ varargs }}{{ caller() if caller }}{% endmacro %}{{ m(1, 2, 3) }}"
    "{% call m('q') %}in{% endcall %}", "{% filter upper %}abc{% endfilter %}{% set t %}a{{ 1 }}{% endset %}{{ t }}",
    "{{ 'a,b'.split(',') | map('upper') | list }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ messages | map(attribute='role') | unique | join('/') }}{{ messages | groupby('role') | length }}",
    "{{ strftime_now('%Y') | length }}{{ strftime_now is defined }}{{ tools is none }}{{ documents is none }}",
    "{{ raise_exception('no') }}", "{{ nothing | tojson }}", "{{ 'a' + 1 }}", "{{ messages.append(1) }}", "{{ ''.__class__.x }}",
    "{{ dict.update(messages[0], {'role': 'x'}) }}", "{% if %}", "{% generation %}",
    "{{ 'a' | nofilter }}", "{{ strftime_now() }}",
]  # fmt: skip


@pytest.mark.parametrize("source", PIECES)
def test_each_thing_that_a_template_can_use_is_transformers(source):
    """What transformers refuses is refused here, and the conversation stays as it is."""
    turns = json.loads(json.dumps(RECORD["messages"]))
    try:
        wanted = render_jinja_template([turns], chat_template=source)[0][0]
    except Exception:
        with pytest.raises(UserError, match="the folder's chat template (refused it|is no valid Jinja)"):
            compile_chat_template(source)(turns, False)
    else:
        assert compile_chat_template(source)(turns, False) == wanted
    assert turns == RECORD["messages"]


def test_today_s_date_is_one_date_in_training_and_today_s_where_a_model_is_asked(tokenizer):
    source = "{{ strftime_now('%d %b %Y') }}|{% for m in messages %}{{ m.content }}{% endfor %}"
    own = replace(tokenizer, chat_template=source)
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    ids, _ = encoder("tokenizer", own)(record)
    assert own.detokenize(ids) == "26 Jul 2024|ab" == f"{TRAINING_DATE:%d %b %Y}|ab"
    days = [datetime(2031, 1, 2), datetime(2031, 1, 3)]
    render = chat_renderer(own, lambda: days.pop(0))
    assert [render(record["messages"], False) for _ in range(2)] == ["02 Jan 2031|ab", "03 Jan 2031|ab"]
    before = datetime.now()
    year = chat_renderer(replace(own, chat_template="{{ strftime_now('%Y') }}"))(record["messages"], False)
    assert str(before.year) <= year <= str(datetime.now().year)


DOUBLED = "{% set x = ['x'] %}" + "{% set x = [x, x] %}" * 40
TALL = "{% set k = 'x' * 1000000 %}"


@pytest.mark.parametrize(
    "source",
    [DOUBLED + "{{ x | tojson }}", DOUBLED + "{{ '%s' % (x,) }}",
     "{% macro f(n) %}{{ f(n - 1, varargs, varargs) if n else varargs | string }}{% endmacro %}{{ f(40, 1, 2) }}",
     TALL + "{% set d = {k: 1} %}{{ [" + "d," * 3000 + "] }}", "{{ [[1]] | tojson(indent='" + "y" * 1001 + "') }}",
     "{{ range(99999) | list | tojson(separators=('x' * 100000, ':')) }}", "{{ [1] | tojson(indent=10 ** 9) }}",
     TALL + "{{ ('{0}' * 300000).format(k) }}", TALL + "{{ ('%(a)s' * 100000) % {'a': k} }}",
     TALL + "{{ ('%(a)s' * 99999) | format(a=k) }}", "{{ '%9999999999d' % 1 }}", "{{ '%*d' % (10 ** 9, 1) }}",
     "{{ '%(a(b)c)9999999999d' % {'a(b)c': 1} }}", "{{ '{:{}}'.format(1, 9 ** 9) }}", "{{ strftime_now('%c' * 100000) }}",
     "{{ 'a'.ljust(10 ** 10) }}", "{{ ('\\t' * 9999).expandtabs(10 ** 6) }}", "{{ 'a' | center(10 ** 10) }}",
     "{{ [1] | batch(10 ** 10, 0) | list }}", "{{ [1] | slice(10 ** 10) | list }}",
     "{% for i in range(99999) %}" + "x" * 3000 + "{% endfor %}",
     "{% for i in range(99999) %}{% generation %}" + "x" * 3000 + "{% endgeneration %}{% endfor %}",
     "{% set x %}x{% endset %}" + "{% set x %}{% generation %}{{ x }}{{ x }}{% endgeneration %}{% endset %}" * 40],
)  # fmt: skip
def test_much_of_little_is_refused_before_it_is_made(source):
    words = "it (makes a text or a list|writes|takes) .*more than|a text is formatted to a width"
    with pytest.raises(UserError, match=f"the folder's chat template refused it: ({words})"):
        compile_chat_template(source)([{"role": "user", "content": "a"}], False)
