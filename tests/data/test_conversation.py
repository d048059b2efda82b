"""What of a record reaches the model: every part that a template can express, and a refusal by name for the rest."""

import json
from dataclasses import replace

import pytest
from sentencepiece import SentencePieceProcessor

from megatron_patch.data.conversation import chat_turns, unused_keys
from megatron_patch.data.json_dataset import build_json_dataset
from megatron_patch.data.prompts import encoder
from megatron_patch.errors import UserError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "my name is bob"},
    {"role": "assistant", "content": "well hello bob"},
    {"role": "user", "content": "what is my name"},
    {"role": "assistant", "content": "bob"},
]
LAST = {"instruction": "what is my name", "output": "bob"}
SAID = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = [{"from": SAID[turn["role"]], "value": turn["content"]} for turn in TURNS]
# The same conversation in all the forms that people have it in; null columns are what merging data sets leaves.
FORMS = {
    "pairs": {**LAST, "system": "Be brief.", "history": [["my name is bob", "well hello bob"]], "messages": None, "input": ""},
    "turns as history": {**LAST, "system": "Be brief.", "history": TURNS[1:3], "conversations": []},
    "sharegpt turns as history": {**LAST, "history": SHAREGPT[:3], "messages": float("nan")},
    "messages": {"messages": TURNS, "instruction": None, "history": [], "tools": "[]"},
    "messages with a system beside": {"system": "Be brief.", "messages": TURNS[1:], "output": ""},
    "sharegpt with a system beside": {"system": "Be brief.", "conversations": SHAREGPT[1:], "messages": None},
    "sharegpt with the system twice": {"system": "Be brief.", "conversations": SHAREGPT},
    "sharegpt under openai's names": {"conversations": TURNS},
    "parts": {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TURNS]},
    "content beside an empty output": {
        "instruction": "what is my name", "output": "", "content": "bob", "system": "Be brief.",
        "history": [["my name is bob", "well hello bob"]],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def pieces(golden):
    return SentencePieceProcessor(model_file=str(golden / "hf_mha" / "tokenizer.model"))


def learnt_texts(encoded, tokenizer):
    """The decoded runs of learnt tokens, the end token as </s>."""
    runs, before = [], False
    for i, mark in zip(*encoded):
        if mark:
            runs = runs if before else [*runs, []]
            runs[-1].append(i)
        before = mark
    return [tokenizer.detokenize(run) + "</s>" * (run[-1] == 2) for run in runs]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_conversation(form, tokenizer, pieces):
    assert chat_turns(FORMS[form]) == TURNS
    ids, learnt = encoder("llama2-chat", tokenizer)(FORMS[form])
    first = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nmy name is bob [/INST] well hello bob "
    assert ids == [1, *pieces.encode(first), 2, 1, *pieces.encode("[INST] what is my name [/INST] bob "), 2]
    assert [text.strip() for text in learnt_texts((ids, learnt), tokenizer)] == ["well hello bob </s>", "bob </s>"]
    assert not list(unused_keys(FORMS[form]))


@pytest.mark.parametrize("form", ["pairs", "turns as history", "sharegpt turns as history"])
def test_alpaca_has_a_place_for_system_and_history(form, tokenizer, pieces):
    """As in LLaMA-Factory the system's text replaces the prompt's first sentences; earlier turns have the same form."""
    ids, learnt = encoder("alpaca", tokenizer)(FORMS[form])
    asked = "Be brief.\n\n### Instruction:\nmy name is bob\n\n### Response:"
    whole = asked + "well hello bob\n\n### Instruction:\nwhat is my name\n\n### Response:bob"
    assert tokenizer.detokenize(ids) == whole and ids.count(2) == 2 and ids[0] == 1
    assert ids[: ids.index(2)] == [1, *pieces.encode(asked + "well hello bob")]
    assert learnt_texts((ids, learnt), tokenizer) == ["well hello bob</s>", "bob</s>"]


def test_without_system_and_history_alpaca_is_as_it_was(tokenizer):
    encode = encoder("alpaca", tokenizer)
    assert encode({**LAST, "system": "", "history": [], "messages": None}) == encode(LAST)
    wudao = {"instruction": "", "input": "", "content": "text"}
    assert encode({**wudao, "messages": None, "conversations": []}) == encode(wudao)
    text = tokenizer.detokenize(encode({**LAST, "input": "a", "history": [["b", "c"]]})[0])
    assert "further context" in text and text.endswith("### Instruction:\nwhat is my name\n\n### Input:\na\n\n### Response:bob")


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize("template", ["alpaca", "llama2-chat", "tokenizer"])
def test_a_turn_of_weight_0_is_read_and_not_learnt(tokenizer, template, key):
    tokenizer = replace(tokenizer, chat_template="{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    turns = [dict(turn) for turn in TURNS[1:]]
    record = {**LAST, "history": turns[:2]} if template == "alpaca" else {"messages": turns}
    ids, learnt = encoder(template, tokenizer)(record)
    turns[1][key] = False if key == "train" else 0
    masked = encoder(template, tokenizer)(record)
    assert masked[0] == ids and len(learnt_texts((ids, learnt), tokenizer)) == 2
    assert [text.strip(" </s>") for text in learnt_texts(masked, tokenizer)] == ["bob"]
    turns[1][key] = 0.5
    with pytest.raises(ValueError, match=f"turn 2 of .* has {key!r} 0.5; it must be 0 or 1"):
        encoder(template, tokenizer)(record)


CALL = {"name": "clock", "arguments": {"zone": "UTC"}}
OPENAI_TOOLS = {
    "messages": [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
        {"role": "tool", "content": "noon", "tool_call_id": "1"},
        {"role": "assistant", "content": "It is noon."},
    ],
    "tools": [{"type": "function", "function": {"name": "clock"}}],
}
SHAREGPT_TOOLS = {
    "conversations": [
        {"from": "human", "value": "time?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "noon"},
        {"from": "gpt", "value": "It is noon."},
    ],
    "tools": json.dumps([{"type": "function", "function": {"name": "clock"}}]),
}
WITH_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.zone }}){% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("record", [OPENAI_TOOLS, SHAREGPT_TOOLS], ids=["openai", "sharegpt"])
def test_tools_reach_a_template_that_has_a_place_for_them(record, tokenizer):
    encode = encoder("tokenizer", replace(tokenizer, chat_template=WITH_TOOLS))
    text = tokenizer.detokenize(encode(record)[0])
    assert text.endswith("[user]time?[assistant]clock(UTC)[tool]noon[assistant]It is noon.") and '"name": "clock"' in text
    for left_out, words in (
        ("m.tool_calls or ", "a call of a tool"), ("{{ tools | tojson }}", "'tools'"), ("{{ m.content }}", "a tool turn")
    ):  # fmt: skip
        template = WITH_TOOLS.replace(left_out, "")
        with pytest.raises(ValueError, match=f"{words}.*which the folder's chat template passes over"):
            encoder("tokenizer", replace(tokenizer, chat_template=template))(record)


@pytest.mark.parametrize(
    ("template", "record", "words"),
    [
        ("llama2-chat", OPENAI_TOOLS, "it has 'tools' and a call of a tool and a tool's turn, for which --template"),
        ("llama2-chat", SHAREGPT_TOOLS, "it has 'tools' and a call of a tool and a tool's turn"),
        ("llama2-chat", {"messages": OPENAI_TOOLS["messages"][:2]}, "it has a call of a tool"),
        ("llama2-chat", {**LAST, "functions": [{"name": "clock"}]}, "it has 'functions'"),
        ("alpaca", {**LAST, "tools": "[{}]"}, "it has 'tools'"),
        ("pretrain", {**LAST, "system": "Be brief.", "history": [["a", "b"]]}, "it has 'system' and 'history', for which"),
        ("alpaca", {**LAST, "messages": TURNS}, "it has 'messages' and 'instruction' and 'output', which are two forms"),
        ("llama2-chat", {"messages": TURNS, "conversations": SHAREGPT}, "it has 'messages' and 'conversations'"),
        ("llama2-chat", {"system": "Else.", "messages": TURNS}, "two system messages that differ"),
        ("llama2-chat", {"system": ["Be brief."], "messages": TURNS[1:]}, "its 'system' is list"),
        ("llama2-chat", {**LAST, "history": [["a", None]]}, r"item 1 of 'history' must be a \[question, answer\] pair"),
        ("alpaca", {**LAST, "history": "a"}, "its 'history' is str"),
        ("alpaca", {**LAST, "history": TURNS[1:2]}, "turn 2 is user's, but the turns must be"),
        ("llama2-chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "holds a part of type image_url"),
        ("llama2-chat", {"messages": [*TURNS[1:2], {"role": "tool", "content": "a"}]}, "turn 2 is tool's"),
        ("llama2-chat", {"conversations": [{"from": "function_call", "value": "no"}]}, "is a text that is no JSON"),
    ],
)
def test_what_a_template_cannot_express_is_refused_by_name(template, record, words, tokenizer):
    with pytest.raises(ValueError, match=words):
        encoder(template, tokenizer)(record)


@pytest.mark.parametrize(
    ("record", "used"),
    [
        ({**LAST, "history": float("nan"), "input": float("inf")}, False),
        ({**LAST, "history": float("nan"), "system": None}, True),
        ({"messages": [{**TURNS[1], "from": ["a"], "name": "b"}, TURNS[2]]}, True),
        ({"messages": [{**TURNS[1], "role": ["user"]}, TURNS[2]]}, False),
        ({"messages": TURNS[1:3], "tools": [{"name": "\ud83d"}]}, False),
        ({"messages": [TURNS[1], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 1}}]}]}, True),
        ({"messages": [TURNS[1], {"role": "assistant", "tool_calls": [{"function": ["f"]}], "content": ""}]}, False),
        ({"conversations": [{"from": "human", "value": "a", "weight": float("nan")}, SHAREGPT[2]]}, True),
        ({"messages": [{**TURNS[1], "value": float("nan")}, {**TURNS[2], "tool_calls": float("nan"), "weight": None}]}, True),
        ({"messages": [TURNS[1], {**TURNS[2], "weight": 0.5}]}, False),
    ],
)
def test_odd_records_are_used_or_listed(record, used, tokenizer, tmp_path):
    """Never an error of Python's own."""
    own = replace(tokenizer, chat_template=WITH_TOOLS.replace("{{ tools | tojson }}", "{{ tools }}{{ tools[0].name }}"))
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(record)}\n{json.dumps({'messages': TURNS})}\n")
    options = dict(pad_len=80, seq_len=80, template="tokenizer", max_bad_fraction=0.5)
    assert len(build_json_dataset(tmp_path / "data.jsonl", own, **options)) == 1 + used


def test_a_template_without_the_end_token_that_the_model_waits_for_is_a_warning(tokenizer, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"messages": TURNS[1:]}]))
    # The last model waits for </s> and for a newline, as a model of Phi-3's kind waits for three tokens.
    waits = tuple(tokenizer.tokenize_after_end("\n"))
    for end, warned, more in (
        ("", True, ()), ("<|im_end|>", True, ()), ("{{ eos_token }}", False, ()),
        ("{{ '\n' }}", True, ()), ("{{ '\n' }}", False, waits),
    ):  # fmt: skip
        own = replace(tokenizer, more_ends=more, chat_template="{% for m in messages %}{{ m.content }}" + end + "{% endfor %}")
        data = build_json_dataset(tmp_path / "data.json", own, pad_len=80, seq_len=80, template="tokenizer")
        assert any("hold no end token that the folder's model waits for" in line for line in data.report.lines()) is warned


def test_a_system_that_the_folder_s_template_passes_over_is_refused(tokenizer):
    own = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="it has a system turn, which the folder's chat template passes over"):
        encoder("tokenizer", replace(tokenizer, chat_template=own))({"messages": TURNS})


def test_unknown_keys_are_counted_and_named_also_from_the_cache(tokenizer, tmp_path):
    records = [{**LAST, "id": n, "source": "web", "images": ["a.png"], "history": None} for n in range(3)]
    records[0]["history"] = [{"role": "user", "content": "a", "mood": "x"}, {"role": "assistant", "content": "", "name": "bob"}]
    (tmp_path / "data.json").write_text(json.dumps(records))
    for _ in "made", "read":
        lines = build_json_dataset(tmp_path / "data.json", tokenizer, pad_len=256, seq_len=256, cache_dir=tmp_path).report.lines()
        assert lines[1:] == [
            "1 sample has an empty answer, which teaches nothing, not even to end.",
            "keys with content that are not used: "
            "'images' (3 records), 'history[].mood' (1 record), 'history[].name' (1 record).",
            "keys that only describe a record, not used: 'id' (3 records), 'source' (3 records).",
        ]


def test_bad_records_are_listed_left_out_and_counted(tokenizer, tmp_path):
    lines = [json.dumps({"instruction": f"say {n}", "output": f"{n}"}) for n in range(300)]
    lines[6], lines[40], lines[41] = '{"instruction": "x"}', "not json", '["a"]'
    lines.insert(10, "")
    path, options = tmp_path / "data.jsonl", dict(pad_len=80, seq_len=80, cache_dir=tmp_path / "cache")
    path.write_text("\n".join(lines))
    for _ in "made", "read":
        data = build_json_dataset(path, tokenizer, **options)
        (report,) = (tmp_path / "cache").glob("*_skipped.jsonl")
        assert len(data) == 297
        assert data.report.lines()[1] == f"3 of 300 records cannot be used and are left out; {report} lists them."
        rows = [json.loads(line) for line in report.read_text().splitlines()]
        assert [(row["file"], row["line"]) for row in rows] == [(str(path), 7), (str(path), 42), (str(path), 43)]
        assert rows[0]["reason"].startswith("it has neither 'output' nor 'content'")
    words = rf"data\.jsonl: 3 of 300 .* fraction 0\.009; {report} lists them\. The first: line 7: .*--max-bad-fraction 0\.01"
    with pytest.raises(UserError, match=words):
        build_json_dataset(path, tokenizer, **options, max_bad_fraction=0.009)
    path.write_text("[" + ",".join(line for line in lines if line.startswith("{")) + ', {"instruction": "cut')
    data = build_json_dataset(path, tokenizer, **options, max_bad_fraction=0.01)
    assert len(data) == 297 and data.report.account.bad == 2, "the rest of a broken list is one record or more"


@pytest.mark.parametrize("template", ["alpaca", "pretrain", "llama2-chat"])
def test_empty_answers_alone_teach_nothing(tokenizer, tmp_path, template):
    def report(*outputs):
        (tmp_path / "data.json").write_text(json.dumps([{"instruction": "a", "output": text} for text in outputs]))
        return build_json_dataset(tmp_path / "data.json", tokenizer, pad_len=80, seq_len=80, template=template).report

    assert report("", "").teaches_nothing and report("", "").account.empty_answers == 2
    assert not report("", "b").teaches_nothing


def test_more_than_half_cut_is_a_warning_with_the_length_that_keeps_95_of_100_whole(tokenizer, tmp_path):
    sizes = list(range(1, 101))
    (tmp_path / "data.json").write_text(json.dumps([{"instruction": "a", "output": " 1" * n} for n in sizes]))
    whole = build_json_dataset(tmp_path / "data.json", tokenizer, pad_len=400, seq_len=400)
    lengths = sorted(int(row["loss_mask"].nonzero()[0].max()) + 2 for row in whole)
    assert not any("PAD_LEN" in line for line in whole.report.lines())
    half = build_json_dataset(tmp_path / "data.json", tokenizer, pad_len=lengths[49], seq_len=400)
    assert not any("WARNING" in line for line in half.report.lines())
    cut = build_json_dataset(tmp_path / "data.json", tokenizer, pad_len=lengths[48], seq_len=400)
    warning = next(line for line in cut.report.lines() if line.startswith("WARNING: 51 of 100 samples, more than half,"))
    assert f"A PAD_LEN of {lengths[94]} " in warning
    again = build_json_dataset(tmp_path / "data.json", tokenizer, pad_len=lengths[94], seq_len=400)
    assert again.report.cut == 5
