"""A run at a learning rate of 0 saves what it loaded; converted back, that is the folder everything came from."""

from __future__ import annotations

import pytest

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from tests.launching import GOLDEN, PRETRAIN, train
from tests.weights.models import assert_same, read_hf

CORPUS = GOLDEN / "data" / "corpus_text_document"


@pytest.mark.parametrize(
    "source, layout",
    [
        ("hf_gqa", dict(TP=2, PP=1, DO="true")),
        ("megatron_2023/october/gqa_tp2_pp1", dict(TP=2, PP=2, DO="false")),
    ],
)
def test_through_training_and_back(source, layout, tmp_path):
    """Another layout than the source's, optimizer state beside the weights, the root and one iteration of it."""
    folder = GOLDEN / source
    checkpoint = folder
    if source.startswith("hf"):
        checkpoint = tmp_path / "megatron"
        convert(Conversion(folder, checkpoint, to_hf=False))
    values = dict(LR="0", MIN_LR="0", PR="fp16", TRAIN_TOKENS=2 * 4 * 32, WARMUP_TOKENS=0, DATASET_PATH=CORPUS)
    processes = layout["TP"] * layout["PP"]
    steps = train(PRETRAIN, tmp_path / "out", processes=processes, PRETRAIN_CHECKPOINT_PATH=checkpoint, **values, **layout)
    assert len(steps) == 2
    (root,) = (tmp_path / "out/checkpoint").iterdir()
    wanted = read_hf(GOLDEN / ("hf_gqa" if "gqa" in source else "hf_mha"))
    for number, given in enumerate((root, root / "iter_0000002")):
        convert(Conversion(given, tmp_path / f"back{number}", to_hf=True))
        assert_same(read_hf(tmp_path / f"back{number}"), wanted)
    assert (tmp_path / "back0/tokenizer.model").read_bytes() == (GOLDEN / "hf_mha/tokenizer.model").read_bytes()
