"""A conversation in the folder's own form has the tokens that transformers makes of it, in training and when asked."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from megatron_patch.data.prompts import encoder
from megatron_patch.data.rendered import chat_renderer
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.data.tokenizer_json import add_tokenizer_json
from megatron_patch.generate.prompt import prompt_maker

EACH = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TOOLS = [{"type": "function", "function": {"name": "查询"}}]


@pytest.mark.parametrize(
    ("settings", "content"),
    [
        ({}, "好 </s> a<s>"),
        ({"rstrip": True}, "a\n b"),
        ({"lstrip": True}, " a \n"),
        ({"lstrip": True, "rstrip": True}, "x\u3000"),
    ],
)
@pytest.mark.parametrize("bos", ["<s>", "<|im_start|>", None])
def test_a_rendered_text_has_the_tokens_that_it_has_in_transformers(golden, tmp_path, settings, content, bos):
    """Special tokens in it, none added to it, and the white space that Phi-3's tokens take with them."""
    folder = tmp_path / "folder"
    shutil.copytree(golden / "hf_mha", folder, ignore=shutil.ignore_patterns("*.safetensors", "special_tokens_map.json"))
    turn = " <|im_start|>{{ m.role }}\n{{ m.content }} <|im_end|>\n"
    source = "{{ bos_token }}{{ unk_token }}{{ pad_token }}{% for m in messages %}" + turn + "{% endfor %}"
    source += "{% if add_generation_prompt %} <|im_start|>assistant\n{% endif %}"
    own = {"chat_template": source, "bos_token": bos, "pad_token": "<|im_end|>", "tokenizer_class": "LlamaTokenizer"}
    literals = {0: "<unk>", 1: "<s>", 2: "</s>", 800: "<|im_start|>", 801: "<|im_end|>"}
    own["added_tokens_decoder"] = {
        str(i): {"content": text, "special": True, "normalized": False, **(settings if i >= 800 else {})}
        for i, text in literals.items()
    }
    before = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(before | own))
    assert add_tokenizer_json(folder, 802) is None, "transformers reads it, by the tokenizers library"
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    peer, tokenizer = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert encoder("tokenizer", tokenizer)({"messages": turns})[0] == peer.apply_chat_template(turns)["input_ids"]
    asked = peer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    assert prompt_maker("tokenizer", tokenizer)(turns[:1]) == asked


def test_a_conversation_with_tools_has_the_template_that_is_named_for_them(golden, tmp_path):
    """As in the folders of Hermes: the template `default` passes over tools, and `tool_use` writes them."""
    folder = tmp_path / "folder"
    shutil.copytree(golden / "hf_mha", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    named = [{"name": "tool_use", "template": "{{ tools | tojson }}" + EACH}, {"name": "default", "template": EACH}]
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    peer, render = AutoTokenizer.from_pretrained(folder), chat_renderer(load_tokenizer(folder))
    for given in (TOOLS, None):
        wanted = peer.apply_chat_template(TURNS, given, tokenize=False)
        assert render(TURNS, False, given) == wanted and ("查询" in wanted) is bool(given)
    assert encoder("tokenizer", load_tokenizer(folder))({"messages": TURNS, "tools": TOOLS})[0]
