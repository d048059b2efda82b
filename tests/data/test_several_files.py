"""Which samples an epoch draws from several files: counted, since every file's share and passes are known exactly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from megatron_patch.data.batches import BatchPlan
from megatron_patch.data.json_dataset import build_json_dataset
from megatron_patch.data.several_files import Joined, blend_of, joined, names_of, weighted
from megatron_patch.errors import UserError

SIZES = (7, 2, 11)  # samples of each file


def drawn(weights: tuple[float, ...], epochs: int) -> list[list[int]]:
    """The sample numbers of each epoch, as batches of 3 deal them out."""
    blend = blend_of(SIZES, weights, seed=5)
    plan = BatchPlan(sum(SIZES), 3, 3, 1, shuffle_seed=5, passes=epochs, blend=blend)
    batches = [plan.global_batch(number) for number in range(epochs * plan.batches_per_pass)]
    return [sum(batches[k : k + plan.batches_per_pass], []) for k in range(0, len(batches), plan.batches_per_pass)]


def by_file(samples: list[int]) -> list[Counter[int]]:
    ends = (0, 7, 9, 20)
    return [Counter(i for i in samples if begin <= i < end) for begin, end in zip(ends, ends[1:])]


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((5, 3, 2), (10, 6, 4)), ((0.35, 0.1, 0.55), (7, 2, 11)), ((1, 1, 1), (7, 7, 6)), ((1, 1, 18), (1, 1, 18))],
)
def test_a_weight_is_a_file_s_share_of_an_epoch_and_no_sample_comes_again_before_the_others(weights, counts):
    epochs = drawn(weights, 6)
    for number, samples in enumerate(epochs, start=1):
        assert tuple(sum(found.values()) for found in by_file(samples)) == counts
        so_far = by_file(sum(epochs[:number], []))
        for size, found in zip(SIZES, so_far):
            passes, rest = divmod(sum(found.values()), size)
            times = Counter(found.values())
            assert times.get(passes + 1, 0) == rest and times.get(passes, 0) == (size - rest if passes else 0)
    assert len({tuple(samples) for samples in epochs}) == 6, "each epoch has an order of its own"
    assert epochs == drawn(weights, 6) and epochs[:2] == drawn(weights, 2), "whatever the number of epochs"


def test_weights_like_the_sizes_take_each_sample_once():
    assert all(sorted(samples) == list(range(20)) for samples in drawn((7, 2, 11), 3))


@pytest.fixture
def parts(tokenizer, tmp_path):
    def one(name: str, count: int):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'{{"instruction": "{name}", "output": "{n}"}}\n' for n in range(count)))
        return build_json_dataset(path, tokenizer, pad_len=80, seq_len=80)

    return [one("a", 3), one("b", 1), one("c", 2)]


def test_several_files_are_one_behind_the_other(parts, tmp_path, tokenizer):
    both = joined(parts)
    (tmp_path / "all.jsonl").write_text("".join((tmp_path / f"{name}.jsonl").read_text() for name in "abc"))
    whole = build_json_dataset(tmp_path / "all.jsonl", tokenizer, pad_len=80, seq_len=80)
    assert isinstance(both, Joined) and len(both) == len(whole) == 6 and joined(parts[:1]) is parts[0]
    assert all((both[i][key] == whole[i][key]).all() for i in range(6) for key in whole[i])
    for outside in (-1, 6):
        with pytest.raises(IndexError):
            both[outside]


def test_what_comes_from_each_file_is_said(parts):
    said: list[str] = []
    assert weighted(parts, (), 1, said.append) is None and said == []
    weighted(parts, (1, 2, 3), 1, said.append)
    assert [line.rpartition("/")[2] for line in said] == [
        "a.jsonl: 1 of an epoch's 6 samples, 0.333 passes over its 3",
        "b.jsonl: 2 of an epoch's 6 samples, 2 passes over its 1",
        "c.jsonl: 3 of an epoch's 6 samples, 1.5 passes over its 2",
    ]
    with pytest.raises(UserError, match="b.jsonl has the weight 0.01 of 2.01, so none of an epoch's 6 samples comes from it"):
        weighted(parts, (1, 0.01, 1), 1, said.append)
    assert replace(blend_of(SIZES, (1, 1, 1), 1), seed=2).samples(0).tolist() != blend_of(SIZES, (1, 1, 1), 1).samples(0).tolist()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/d/en.json", "/d/zh.json"], ["en", "zh"]),
        (["en/valid.json", "zh/valid.json", "test.json"], ["en/valid", "zh/valid", "test"]),
        (["/a/x/v.json", "/b/x/v.json"], ["a/x/v", "b/x/v"]),
        (["/c/v.json", "/c/d/v.json", "/v.json"], ["c/v", "d/v", "v.json"]),
        (["v.json", "v.jsonl"], ["v.json", "v.jsonl"]),
        (["v.json", "v.json", "w.json", "v.json"], ["v", "v-2", "w", "v-3"]),
        (["v1.2.json.gz", "v1.3.json.gz"], ["v1.2", "v1.3"]),
    ],
)
def test_names_are_short_and_tell_files_apart(paths, names):
    assert names_of(paths) == names
