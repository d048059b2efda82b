"""The original's arrays (golden/sft) are the truth. Where the original is wrong, the tests say what is right."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor

from megatron_patch.data.json_dataset import build_json_dataset

PAD = 800  # the original's padding id, outside the vocabulary of 800
ALIKE = (0, 1, 2, 3, 4, 7, 8)  # sample 6 has an empty answer, of which the original learns the end token: see below


@pytest.fixture(scope="module")
def original(golden):
    return np.load(golden / "sft" / "finetune_pad80.npz")


@pytest.fixture(scope="module")
def samples(golden):
    return json.loads((golden / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))


@pytest.fixture
def build(tokenizer, tmp_path):
    def build(records, pad_len=80, seq_len=256, **options):
        path = tmp_path / "data.json"
        path.write_text(records if isinstance(records, str) else json.dumps(records), encoding="utf-8")
        return build_json_dataset(path, tokenizer, pad_len=pad_len, seq_len=seq_len, **options)

    return build


def learnt_text(tokenizer, row):
    """What the model is asked to predict, the end token as </s>."""
    ids = row["labels"][row["loss_mask"] == 1]
    return "".join("</s>" if i == 2 else tokenizer.detokenize([i]) for i in ids)


@pytest.mark.parametrize("i", ALIKE)
def test_tokens_labels_and_mask_are_the_original_s(build, samples, original, i):
    row = build(samples)[i]
    ids, mask = original["input_ids"][i], original["loss_mask"][i]
    kept = ids != PAD
    assert (row["tokens"][kept] == ids[kept]).all()
    assert (row["loss_mask"][:-1] == mask[1:]).all() and row["loss_mask"][-1] == 0
    learnt = mask[1:] == 1
    assert (row["labels"][:-1][learnt] == original["model_labels"][i][learnt]).all()
    assert (row["position_ids"] == np.arange(80)).all()


@pytest.fixture(scope="module")
def pretraining(golden):
    return np.load(golden / "sft" / "pretrain_pad80.npz")


@pytest.mark.parametrize("i", [*ALIKE, 5])
def test_pre_training_s_prompt_is_the_original_s(build, samples, pretraining, i):
    """Sample 5 with a null input, which the original spells out, and we do not: see below."""
    spelt = [{**sample, "input": "None"} if n == 5 else sample for n, sample in enumerate(samples)]
    row = build(spelt, template="pretrain")[i]
    ids, mask, labels = (pretraining[key][i] for key in ("input_ids", "loss_mask", "model_labels"))
    kept = ids != PAD
    assert (row["tokens"][kept] == ids[kept]).all() and (row["loss_mask"][:-1] == mask[1:]).all() and row["loss_mask"][-1] == 0
    assert (row["labels"][:-1][mask[1:] == 1] == labels[mask[1:] == 1]).all()


def test_pre_training_s_prompt_where_the_original_is_wrong(build, samples, pretraining, golden):
    """A null input is none. A literal `[PAD]` is text: sample 9's answer begins rightly, and all of 10's is learnt."""
    pieces = SentencePieceProcessor(model_file=str(golden / "hf_mha" / "tokenizer.model"))
    behind = [635, 361, 637, 273, 639, 645, 638]  # " literals" after the literal </s>, as the original has it
    assert behind in [pretraining["input_ids"][10][i : i + 7].tolist() for i in range(70)]
    wanted = {
        5: ("instruction:Count.\n", [*pieces.encode("instruction:Count.\n1 2 3"), 2]),
        9: ("instruction:Mark [PAD] here.\n", [*pieces.encode("instruction:Mark [PAD] here.\nok"), 2]),
        10: ("instruction:Pad word\n", [*pieces.encode("instruction:Pad word\ntext with [PAD] and "), 2, *behind, 2]),
    }
    rows = build(samples, template="pretrain")
    for i, (prompt, ids) in wanted.items():
        count, begin = len(ids), len(pieces.encode(prompt))
        assert rows[i]["tokens"][: count + 1].tolist() == [1, *ids]
        assert rows[i]["labels"][:count].tolist() == ids
        assert np.flatnonzero(rows[i]["loss_mask"]).tolist() == list(range(begin, count))


@pytest.mark.parametrize(("template", "golden_arrays"), [("alpaca", "original"), ("pretrain", "pretraining")])
def test_an_empty_answer_teaches_nothing_where_the_original_learns_its_end(build, samples, template, golden_arrays, request):
    arrays, dataset = request.getfixturevalue(golden_arrays), build(samples, template=template)
    ids, mask = arrays["input_ids"][6], arrays["loss_mask"][6]
    kept = ids != PAD
    assert samples[6]["output"] == "" and ids[mask == 1].tolist() == [2], "what the original does"
    assert (dataset[6]["tokens"][kept] == ids[kept]).all() and not dataset[6]["loss_mask"].any()
    assert "1 sample has an empty answer, which teaches nothing, not even to end." in dataset.report.lines()
    assert build([samples[6]], template=template).report.teaches_nothing


def test_why_a_sample_teaches_nothing_is_said_once(build):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    silent = [turns[:1], [turns[0], {**turns[1], "weight": 0}], [turns[0], {"role": "assistant", "content": " "}]]
    long = [{"role": "user", "content": "a " * 200}, turns[1]]
    report = build([{"messages": one} for one in (*silent, long, turns, turns, turns)], template="llama2-chat").report
    assert report.lines()[1:] == [
        "1 of 7 samples is longer than 80 tokens and was cut; its answer has no end token. A larger PAD_LEN (SEQ_LEN with "
        "packing) keeps it whole.",
        "1 sample has no answer within 80 tokens and teaches nothing.",
        "1 sample has an empty answer, which teaches nothing, not even to end.",
        "2 samples have no answer, or answers of weight 0 alone, and teach nothing.",
    ]


def test_every_id_lies_inside_the_vocabulary(build, samples, original):
    assert (original["input_ids"] == PAD).any(), "the original's padding does not"
    for row in build(samples):
        assert row["tokens"].min() >= 0 and row["tokens"].max() < 800
        assert row["labels"].min() >= 0 and row["labels"].max() < 800


def test_the_end_token_is_learnt_and_padding_is_not(build, samples, tokenizer):
    row = build(samples)[0]
    assert learnt_text(tokenizer, row) == "Hello!</s>"
    assert row["loss_mask"].sum() == len(tokenizer.tokenize("Hello!")) - 1 + 1  # no leading space piece; the end token


def test_a_null_input_is_no_input(build, samples):
    dataset = build([samples[5], {"instruction": "Count.", "output": "1 2 3"}])
    assert (dataset[0]["tokens"] == dataset[1]["tokens"]).all()
    assert samples[5]["input"] is None


def test_a_literal_pad_is_text(build, samples, tokenizer):
    dataset = build(samples)
    assert "Mark [PAD] here." in tokenizer.detokenize(dataset[9]["tokens"])
    assert learnt_text(tokenizer, dataset[9]) == "ok</s>"
    answer = dataset[10]["labels"][dataset[10]["loss_mask"] == 1]
    assert tokenizer.detokenize(answer[: answer.tolist().index(2)]) == "text with [PAD] and "
    assert answer[-9:].tolist() == [635, 2, 635, 361, 637, 273, 639, 645, 638][1:] + [2], "as the original from </s> on"


def test_cut_samples_are_counted_and_said(build, samples):
    report = build(samples).report
    assert (report.samples, report.cut, report.without_answer) == (11, 2, 1)
    assert report.learnt == sum(int(row["loss_mask"].sum()) for row in build(samples))
    lines = " ".join(report.lines())
    assert "2 of 11 samples are longer than 80 tokens and were cut" in lines and "1 sample has no answer within 80" in lines
    assert build(samples)[3]["tokens"][-1] != 2, "a cut answer has no end token"
    assert len(build([samples[0]]).report.lines()) == 1


def test_lines_and_content_are_taken_too(build, samples):
    lines = "\n".join(json.dumps({"instruction": s["instruction"], "content": s["output"]}) for s in samples[:3]) + "\n\n"
    assert len(build(lines)) == 3
    assert (build(lines)[2]["tokens"] == build(samples)[2]["tokens"]).all()


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": 3}], r"item 2: its 'output' is int"),
        ([{"instruction": ["a"], "output": "b"}], r"item 1: its 'instruction' is list"),
        ([{"instruction": "a", "input": 1, "output": "b"}], r"item 1: its 'input' is int"),
        ([{"instruction": "a"}], r"item 1: it has neither 'output' nor 'content'"),
        ([{"output": "a"}], r"item 1: it has no 'instruction'"),
        ([{"messages": [{"role": "user", "content": "a"}]}], r"item 1: it is a conversation; pass --template"),
        ([{"messages": []}], r"item 1: its 'messages' must be a list with at least one turn"),
        ([{"instruction": "a", "output": "b"}, "text"], r"item 2: it is a str, it must be an object"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": ', r"line 2: Expecting value"),
        ('[{"instruction": "a", "output": "b"}, {"ins', r"item 2: Unterminated string"),
        ("", r"holds no samples"),
        ("[]", r"holds no samples"),
        ('[{"instruction": "\\ud83d", "output": "b"}]', r"item 1: it holds half of a surrogate pair"),
    ],
)
def test_bad_data_is_an_error_that_names_the_place(build, records, words):
    with pytest.raises(ValueError, match=rf"data\.json.*{words}"):
        build(records)


def test_a_conversation_of_a_system_message_alone_is_named_before_training(build):
    said, silent = ({"messages": [{"role": role, "content": "a"}]} for role in ("user", "system"))
    with pytest.raises(ValueError, match=r"data\.json.*item 2: it has a system message and nothing after it"):
        build([said, silent], template="llama2-chat")


def test_a_chat_template_that_makes_nothing_of_a_sample_is_refused(tokenizer, tmp_path):
    records = [{"messages": [{"role": "user", "content": text}]} for text in ("a", "")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    own = replace(tokenizer, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    options = dict(pad_len=80, seq_len=80, template="tokenizer", cache_dir=tmp_path)
    for _ in "made", "read from the cache":
        with pytest.raises(ValueError, match=r"data\.jsonl.*line 2: it has no tokens; choose another"):
            build_json_dataset(tmp_path / "data.jsonl", own, **options)


def test_lengths_that_cannot_be_are_refused(build, samples):
    with pytest.raises(ValueError, match="PAD_LEN is 300; .* at most SEQ_LEN, 256"):
        build(samples, pad_len=300)
    with pytest.raises(ValueError, match="template 'x' is not known"):
        build(samples, template="x")


def test_packing_keeps_every_token_and_restarts_positions(build, samples):
    apart, packed = build(samples, pad_len=256), build(samples, packing=True)
    assert len(packed) < len(apart)

    def pieces(dataset):
        rows = []
        for row in dataset:
            segments = row.get("segment_ids")
            for segment in [None] if segments is None else range(1, segments.max() + 1):
                where = slice(None) if segment is None else segments == segment
                kept = [row[k][where].tolist() for k in ("tokens", "labels", "loss_mask", "position_ids")]
                rows.append(kept)
        return rows

    wholes = [[column[:n] for column in piece] for piece, n in zip(pieces(apart), np.minimum(np.diff(apart.table.offsets), 256))]
    for whole in wholes:
        whole[1][-1] = packed.fill  # the last label of a sample is not learnt, and is never its neighbour's first token
    assert sorted(pieces(packed)) == sorted(wholes)
    for row in packed:
        assert (row["loss_mask"][row["segment_ids"] == 0] == 0).all()


def test_packed_loss_per_token_is_the_unpacked_one(build, samples):
    """One attention layer over random weights, causal within a segment: the sums over learnt tokens agree in fp32."""
    generator = torch.Generator().manual_seed(0)
    embed, place = torch.randn(800, 32, generator=generator), torch.randn(256, 32, generator=generator)

    def loss(dataset):
        total = count = 0.0
        for row in dataset:
            t = {k: torch.from_numpy(v) for k, v in row.items()}
            x = embed[t["tokens"]] + place[t["position_ids"]]
            segments = t.get("segment_ids", torch.ones(len(x), dtype=torch.int64))
            mask = torch.tril(segments[:, None] == segments[None, :])
            y = torch.softmax((x @ x.T / 6).masked_fill(~mask, -1e9), -1) @ x
            each = torch.nn.functional.cross_entropy(y @ embed.T, t["labels"], reduction="none")
            total, count = total + (each * t["loss_mask"]).sum().item(), count + t["loss_mask"].sum().item()
        return total / count

    assert loss(build(samples, packing=True)) == pytest.approx(loss(build(samples, pad_len=256)), rel=1e-6)
