import json
import os

import pytest

from megatron_patch.data.json_dataset import build_json_dataset
from megatron_patch.preparation.wudao import clean_wudao
from megatron_patch.preparation.wudao_split import split_wudao

PARTS = ("part-2021278643.json", "part-2021283004.json")


def raw(golden):
    return [record for part in PARTS for record in json.loads((golden / "data" / "wudao_raw" / part).read_text("utf-8"))]


def test_cleaning_is_the_original_s(golden):
    cleaned = [
        json.loads(line)["text"]
        for part in PARTS
        for line in (golden / "data" / "wudao_cleaned" / part).read_text("utf-8").splitlines()
    ]
    assert [clean_wudao(record["content"]) for record in raw(golden)] == cleaned
    assert len(cleaned) == 21
    assert clean_wudao("保留，。《》•、＆—（）：？！“”· 去掉；【】『』…￥") == "保留，。《》•、＆—（）：？！“”· 去掉"


def split(golden, folder, **options):
    files = [golden / "data" / "wudao_raw" / part for part in PARTS]
    return split_wudao(files, folder, **options)


def test_every_record_is_on_one_side_with_its_title(golden, tmp_path, tokenizer):
    counts = split(golden, tmp_path, valid_fraction=0.3)
    train, valid = (json.loads((tmp_path / f"wudao_{side}.json").read_text("utf-8")) for side in ("train", "valid"))
    assert (len(train), len(valid)) == (counts.train, counts.valid) and min(counts.train, counts.valid) > 2
    wanted = [{"instruction": r["title"], "input": "", "content": r["content"]} for r in raw(golden)]
    assert sorted(train + valid, key=str) == sorted(wanted, key=str)
    dataset = build_json_dataset(tmp_path / "wudao_train.json", tokenizer, pad_len=256, seq_len=256)
    assert len(dataset) == counts.train
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wudao_skipped.jsonl", "wudao_train.json", "wudao_valid.json"]


def test_a_record_s_side_depends_on_its_text_alone(golden, tmp_path):
    sides = []
    for name, records in (("all", raw(golden)), ("some", raw(golden)[:4:-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
        split_wudao([tmp_path / f"{name}.jsonl"], tmp_path / name, valid_fraction=0.5)
        valid = json.loads((tmp_path / name / "wudao_valid.json").read_text("utf-8"))
        sides.append({sample["content"] for sample in valid})
    some = {record["content"] for record in raw(golden)[5:]}
    assert sides[1] == sides[0] & some and 3 < len(sides[1]) < 13


def test_nothing_appears_when_too_much_is_bad(golden, tmp_path):
    with pytest.raises(ValueError, match="1 of 22 records are bad, .*wudao_skipped.jsonl lists them"):
        split_wudao([golden / "data" / "wudao_raw"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["wudao_skipped.jsonl"]
    assert "broken.json" in (tmp_path / "wudao_skipped.jsonl").read_text("utf-8")


def test_a_title_that_is_no_unicode_is_a_bad_record(tmp_path, tokenizer):
    records = [{"title": "\ud83d", "text": "a"}, {"title": "\U0001f600", "text": "b"}, {"text": ""}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, records)))
    counts = split_wudao([tmp_path / "in.jsonl"], tmp_path / "out", valid_fraction=0, max_bad_fraction=0.5)
    assert (counts.train, counts.bad, counts.empty) == (1, 1, 1)
    assert len(build_json_dataset(tmp_path / "out" / "wudao_train.json", tokenizer, pad_len=80, seq_len=80)) == 1
    rows = [json.loads(line) for line in (tmp_path / "out" / "wudao_skipped.jsonl").read_text("utf-8").splitlines()]
    assert [(row["line"], row["reason"]) for row in rows] == [
        (1, "its 'title': it holds half of a surrogate pair, which is no character"),
        (3, "it is empty"),
    ]


def test_a_split_is_replaced_when_that_is_asked_for(golden, tmp_path):
    split(golden, tmp_path, valid_fraction=0)
    before = (tmp_path / "wudao_train.json").read_bytes()
    with pytest.raises(ValueError, match="wudao_train.json and .*wudao_valid.json exist; .* or add --overwrite"):
        split(golden, tmp_path, valid_fraction=0.3)
    assert (tmp_path / "wudao_train.json").read_bytes() == before
    assert split(golden, tmp_path, valid_fraction=0.3, overwrite=True).valid > 2
    assert len(json.loads((tmp_path / "wudao_valid.json").read_text("utf-8"))) > 2


def test_no_kill_leaves_parts_of_two_splits(golden, tmp_path, monkeypatch):
    split(golden, tmp_path, valid_fraction=0.3)
    real = os.replace

    def replace(source, target):
        if target.name == "wudao_valid.json":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        split(golden, tmp_path, valid_fraction=0, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wudao_skipped.jsonl", "wudao_train.json"]


def test_a_split_is_not_written_over_its_input(golden, tmp_path):
    split(golden, tmp_path, valid_fraction=0.3)
    before = (tmp_path / "wudao_train.json").read_bytes()
    with pytest.raises(ValueError, match="wudao_train.json is read as input and would be written over"):
        split_wudao([tmp_path / "wudao_train.json"], tmp_path, overwrite=True)
    assert (tmp_path / "wudao_train.json").read_bytes() == before


def test_no_validation_part_is_an_empty_list(golden, tmp_path):
    assert split(golden, tmp_path, valid_fraction=0).valid == 0
    assert json.loads((tmp_path / "wudao_valid.json").read_text()) == []
