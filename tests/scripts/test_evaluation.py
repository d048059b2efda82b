"""run_evaluate_megatron_llama.sh against transformers' losses over the same tokens, in every layout."""

from __future__ import annotations

import json

import pytest
import torch

from megatron_patch.data.json_dataset import build_json_dataset
from megatron_patch.records.indexed import read_index
from tests.launching import ENGINE, EVALUATE, GOLDEN, ROOT, convert, run, run_forked

SFT, PAIR = GOLDEN / "sft" / "alpaca_output.json", GOLDEN / "data" / "corpus_text_document"
SEQ, STRIDE, PAD = 48, 20, 80
ARGUMENTS = dict(
    ENV="dsw", MEGATRON_PATH=ENGINE, MEGATRON_PATCH_PATH=str(ROOT), MODEL_SIZE="auto", BATCH_SIZE=5, SEQ_LEN=96, PAD_LEN=PAD,
    EXTRA_VOCAB_SIZE=0, PR="fp32", TP=1, PP=1, DATASET_PATH="", PRETRAIN_CHECKPOINT_PATH=str(GOLDEN / "hf_gqa"),
)  # fmt: skip
TEXT = "The import statement finds a module.\n\n语言模型 学习。" * 12


def words(**changed):
    return list({**ARGUMENTS, **changed}.values())


def losses(model, tokens, labels):
    """−ln p of each label that is not negative, by transformers' logits in fp32."""
    with torch.no_grad():
        logits = model(torch.as_tensor(tokens)[None]).logits[0].double()
    return [float(-logits[i].log_softmax(-1)[label]) for i, label in enumerate(labels) if label >= 0]


def of_document(model, ids):
    """The sliding window of transformers' page on perplexity: a token counts in the first window that reaches it."""
    found, previous = [], 1
    for begin in range(0, len(ids), STRIDE):
        end = min(begin + SEQ + 1, len(ids))
        if end > previous:
            labels = [ids[i + 1] if i + 1 >= previous else -1 for i in range(begin, end - 1)]
            found += losses(model, ids[begin : end - 1], labels)
        previous = max(previous, end)
        if end == len(ids):
            break
    return found


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(GOLDEN / "hf_gqa", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def samples(model, tokenizer):
    """Losses over the answers of the fine-tuning samples."""
    dataset, found = build_json_dataset(SFT, tokenizer, pad_len=PAD, seq_len=PAD), []
    for row in dataset:
        found += losses(model, row["tokens"], [int(t) if m else -1 for t, m in zip(row["labels"], row["loss_mask"])])
    return found


@pytest.fixture(scope="module")
def documents(model, tokenizer):
    """Losses of the pair, of a text, and of the same text as two records."""
    data = read_index(PAIR)
    pair = [loss for i in range(len(data.lengths)) for loss in of_document(model, data.document(i).tolist())]
    text = of_document(model, [tokenizer.bos, *tokenizer.tokenize(TEXT)])
    return pair, text, text + of_document(model, [tokenizer.bos, *tokenizer.tokenize("short")])


def results(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_fine_tuning_data(tmp_path, samples):
    done = run(EVALUATE, *words(DATASET_PATH=SFT), "--results", tmp_path / "results.json", processes=2)
    assert done.returncode == 0, done.stdout
    (score,) = results(tmp_path / "results.json")["files"]
    assert score["tokens"] == len(samples) and score["kind"] == "fine-tuning samples"
    assert score["loss"] == pytest.approx(sum(samples) / len(samples), abs=1e-5)


@pytest.mark.parametrize("layout", ["one process", "TP 2", "PP 2", "two replicas"])
def test_texts_in_every_layout(layout, tmp_path, documents):
    """Three files in one argument, whose folder has a blank in its name."""
    text, lines = tmp_path / "a text.md", tmp_path / "lines.jsonl"
    text.write_text(TEXT, encoding="utf-8")
    lines.write_text("".join(json.dumps({key: value}) + "\n" for key, value in (("text", TEXT), ("content", "short"))))
    more = {"TP 2": {"TP": 2}, "PP 2": {"PP": 2}}.get(layout, {})
    arguments = words(SEQ_LEN=SEQ, PAD_LEN=SEQ, DATASET_PATH=f"{PAIR}, {text}, {lines}", **more)
    done = run_forked(
        EVALUATE, *arguments, "--stride", STRIDE, "--results", tmp_path / "out" / "results.json",
        processes=1 if layout == "one process" else 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = results(tmp_path / "out" / "results.json")
    assert [score["kind"] for score in found["files"]] == ["indexed documents", "text", "documents"]
    assert [score["documents"] for score in found["files"]] == [len(read_index(PAIR).lengths), 1, 2]
    for score, expected in zip(found["files"], documents):
        assert score["tokens"] == len(expected)
        assert score["loss"] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    whole = [loss for expected in documents for loss in expected]
    assert found["all"]["loss"] == pytest.approx(sum(whole) / len(whole), abs=1e-5)
    assert f"{len(whole):,}" in done.stdout


def test_one_file_of_a_pair_means_the_pair(tmp_path, documents):
    done = run_forked(
        EVALUATE, *words(SEQ_LEN=SEQ, PAD_LEN=SEQ, DATASET_PATH=f"{PAIR}.bin"), "--stride", STRIDE, "--results", tmp_path / "r"
    )
    assert done.returncode == 0, done.stdout
    assert results(tmp_path / "r")["files"][0]["loss"] == pytest.approx(sum(documents[0]) / len(documents[0]), abs=1e-5)


def test_a_checkpoint_of_megatron_with_extra_rows(tmp_path):
    """The added rows are the mean of the others and take probability, so the loss differs and is finite."""
    megatron = convert(GOLDEN / "hf_gqa", tmp_path / "megatron", 2, 2, extra=3)
    done = run_forked(
        EVALUATE, *words(DATASET_PATH=SFT, PRETRAIN_CHECKPOINT_PATH=megatron, EXTRA_VOCAB_SIZE=3, TP=2),
        "--results", tmp_path / "results.json", processes=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    back = convert(megatron, tmp_path / "hf", extra=3, back=True)
    again = run_forked(EVALUATE, *words(DATASET_PATH=SFT, PRETRAIN_CHECKPOINT_PATH=back), "--results", tmp_path / "again.json")
    assert again.returncode == 0, again.stdout
    expected = results(tmp_path / "again.json")["files"][0]["loss"]
    assert results(tmp_path / "results.json")["files"][0]["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("got", "sentence"),
    [
        ("/nowhere.json", "there is no /nowhere.json"),
        (f"{SFT} /nowhere.json", "there is no /nowhere.json"),
    ],
)
def test_a_wrong_path_is_one_sentence(got, sentence, tmp_path):
    done = run_forked(EVALUATE, *words(DATASET_PATH=got), "--results", tmp_path / "results.json")
    assert done.returncode == 2 and "$12 DATASET_PATH: got '" in done.stdout and sentence in done.stdout


def test_json_that_is_neither(tmp_path):
    (tmp_path / "x.json").write_text('[{"prompt": "x"}]')
    done = run_forked(EVALUATE, *words(DATASET_PATH=tmp_path / "x.json"), "--results", tmp_path / "results.json")
    assert done.returncode == 2 and "none of its first 1 records has one of instruction, messages" in done.stdout
    assert "Traceback" not in done.stdout
