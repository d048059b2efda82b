"""Conversations. The truth is SentencePiece on strings written out here."""

import json
import shutil
from dataclasses import replace

import pytest
from sentencepiece import SentencePieceProcessor

from megatron_patch.data.prompts import chat_renderer, chat_turns, encode_llama2_chat, encode_rendered, encoder
from megatron_patch.data.tokenizer import load_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say hello."},
    {"role": "assistant", "content": " Hello! "},
    {"role": "user", "content": "词表？"},
    {"role": "assistant", "content": "自然语言"},
]
LLAMA_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def pieces(golden):
    return SentencePieceProcessor(model_file=str(golden / "hf_mha" / "tokenizer.model"))


def runs(ids, learnt, pieces):
    """The decoded learnt runs, </s> as such."""
    out, before = [], False
    for i, is_learnt in zip(ids, learnt):
        if is_learnt:
            out = out if before else [*out, []]
            out[-1].append(i)
        before = is_learnt
    return ["".join("</s>" if i == 2 else pieces.id_to_piece(i) for i in run).replace("▁", " ") for run in out]


def test_llama2_chat_is_meta_s_format(tokenizer, pieces):
    ids, learnt = encode_llama2_chat(CHAT, tokenizer)
    first = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nSay hello. [/INST] Hello! "
    second = "[INST] 词表？ [/INST] 自然语言 "
    assert ids == [1, *pieces.encode(first), 2, 1, *pieces.encode(second), 2]
    prompt = 1 + len(pieces.encode(first.removesuffix(" Hello! ")))
    assert learnt[:prompt] == [False] * prompt and all(learnt[prompt : 2 + len(pieces.encode(first))])
    assert [tokenizer.detokenize([i for i, w in zip(ids, learnt) if w])] == ["Hello!  自然语言 "]
    assert sum(learnt[i] for i in range(len(ids)) if ids[i] == 2) == 2, "both end tokens are learnt"


def test_literals_in_a_chat_cannot_end_a_turn(tokenizer):
    turns = [{"role": "user", "content": "a</s><s>b"}, {"role": "assistant", "content": "c</s>"}]
    ids, _ = encode_llama2_chat(turns, tokenizer)
    assert (ids.count(1), ids.count(2)) == (1, 1)


def test_sharegpt_and_alpaca_give_the_same_turns():
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = {"conversations": [{"from": names[t["role"]], "value": t["content"]} for t in CHAT]}
    assert chat_turns(sharegpt) == chat_turns({"messages": CHAT}) == CHAT
    assert chat_turns({"instruction": "a", "input": "b", "output": "c"}) == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
    ]


def test_a_last_question_without_an_answer_is_not_learnt(tokenizer):
    ids, learnt = encode_llama2_chat([*CHAT, {"role": "user", "content": "more"}], tokenizer)
    whole, _ = encode_llama2_chat(CHAT, tokenizer)
    assert ids[: len(whole)] == whole and not any(learnt[len(whole) :]) and ids[-1] != 2


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": []}, "must be a list with at least one turn"),
        ({"messages": [{"content": "x"}]}, "turn 1 of 'messages' must be an object with 'role'"),
        ({"messages": [{"role": "user"}]}, "turn 1 of 'messages' must have a text 'content'; it has NoneType"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "turn 1 of 'messages'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "a text 'value'"),
        ({"messages": CHAT[:2] + CHAT[3:]}, "turn 3 is user's, but the turns must be user, assistant"),
        ({"messages": CHAT[2:]}, "turn 1 is assistant's"),
        ({"messages": CHAT[:1]}, "it has a system message and nothing after it"),
        ({"conversations": [{"from": "system", "value": "x"}]}, "it has a system message and nothing after it"),
        ({"text": "x"}, "no 'instruction'"),
    ],
)
def test_turns_that_cannot_be_used_are_named(record, words):
    with pytest.raises(ValueError, match=words):
        chat_turns(record)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LLAMA_TEMPLATE, [" Hello! </s>", " 自然语言 </s>"]),
        (CHATML, [" Hello! <|im_end|>\n", "自然语言<|im_end|>\n"]),
    ],
)
def test_the_folder_s_own_template(tokenizer, pieces, template, expected):
    own = replace(tokenizer, chat_template=template)
    ids, learnt = encode_rendered(CHAT, chat_renderer(own), own)
    rendered = chat_renderer(own)(CHAT, False)
    assert ids == own.tokenize_marked(rendered)
    shown = [run.replace("<0x0A>", "\n").replace("<0x3C>", "<").replace("<0x3E>", ">").replace("<0x7C>", "|")
             .replace("<0x48>", "H").replace("<0x5F>", "_") for run in runs(ids, learnt, pieces)]  # fmt: skip
    assert shown == expected


def test_a_template_from_the_folder_is_used_and_cannot_reach_out(golden, tmp_path, tokenizer):
    folder = tmp_path / "folder"
    shutil.copytree(golden / "hf_mha", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": LLAMA_TEMPLATE}))
    assert encoder("tokenizer", load_tokenizer(folder))({"messages": CHAT[1:]})[0][0] == 1
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match="refused it"):
        encoder("tokenizer", load_tokenizer(folder))({"messages": CHAT})
    with pytest.raises(ValueError, match="has no chat template"):
        encoder("tokenizer", tokenizer)


def test_a_conversation_of_a_thousand_turns_does_not_take_their_square(tokenizer):
    own = replace(tokenizer, chat_template=CHATML)
    render, pair = chat_renderer(own), [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert sum(encode_rendered(pair * 60, render, own)[1]) == 60 * sum(encode_rendered(pair, render, own)[1])
    for long in (pair * 500, [{"role": "user", "content": "a" * 500_000}, pair[1]] * 20):
        with pytest.raises(ValueError, match="turns and [0-9]+ characters, too many for a chat template"):
            encode_rendered(long, render, own)
    assert len(encode_llama2_chat(pair * 500, tokenizer)[0]) > 500 * 6


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    own = replace(tokenizer, chat_template="{{ messages[-1].content }}")
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        encode_rendered(CHAT, chat_renderer(own), own)
