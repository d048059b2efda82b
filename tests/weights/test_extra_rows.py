"""Rows of an enlarged vocabulary in the original's checkpoints: kept, told from padding, checked by their number."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import pytest
import torch

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.arguments.training import ARGUMENTS, read
from megatron_patch.conversion.convert import convert
from megatron_patch.formats.structure_2023 import read_vocabulary_rows
from megatron_patch.formats.vocabulary_2023 import extra_rows
from tests.launching import GOLDEN, PRETRAIN_ARGUMENTS
from tests.weights.models import assert_same, read_hf
from tests.weights.original import STYLES, Written, write_original

HF = GOLDEN / "hf_mha"
# What records extra rows in its own way: not at all, in padded_vocab_size, in padded_vocab_size and extra_vocab_size.
RECORDED = ["2023-09", "2023-11-10", "transformer engine", "trained"]


def more(count):
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(3))


def wanted(count):
    """The folder of truth with the rows in its own dtype, the same ones in embedding and output layer."""
    weights = read_hf(HF)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], more(count).half()])
    return weights


@pytest.mark.parametrize("count, tp, pp", [(8, 1, 1), (8, 4, 2), (3, 2, 1), (96, 1, 1)])
@pytest.mark.parametrize("style", RECORDED)
def test_extra_rows_are_kept(style, count, tp, pp, tmp_path):
    """896 rows look as if they were padded to a multiple of 128."""
    folder = write_original(tmp_path / "source", HF, read_hf(HF), Written(style, tp, pp, extra=more(count)))
    found = read_vocabulary_rows(folder / STYLES[style].folder)
    assert extra_rows(found, 800) == count, "the launcher, without torch"
    for asked in (0, count):
        target = tmp_path / f"hf{asked}"
        summary = convert(Conversion(folder, target, to_hf=True, extra_vocab_size=asked, verify=True))
        assert_same(read_hf(target), wanted(count))
        assert json.loads((target / "config.json").read_text())["vocab_size"] == 800 + count
        assert any(f"the {count} rows" in note for note in summary.notes) == (asked == 0)
    with pytest.raises(ValueError, match=f"EXTRA_VOCAB_SIZE is {count + 1}, .* write {count}, or 0, which keeps them"):
        convert(Conversion(folder, tmp_path / "no", to_hf=True, extra_vocab_size=count + 1))


def test_rows_that_are_not_there_cannot_be_claimed(tmp_path):
    folder = write_original(tmp_path / "source", HF, read_hf(HF), Written("2023-11-10"))
    with pytest.raises(ValueError, match="EXTRA_VOCAB_SIZE is 8, .* has 800 rows for a vocabulary of 800, .* write 0"):
        convert(Conversion(folder, tmp_path / "no", to_hf=True, extra_vocab_size=8))


def test_padding_of_megatron_lm_is_left_out(tmp_path):
    """NVIDIA's padded_vocab_size is a multiple of make_vocab_size_divisible_by × TP, and counts no extra rows."""
    arguments = dict(padded_vocab_size=1024, extra_vocab_size=None)
    written = Written("trained", tp=4, extra=more(224), arguments=arguments)
    folder = write_original(tmp_path / "source", HF, read_hf(HF), written)
    assert extra_rows(read_vocabulary_rows(folder / "iter_0000007"), 800) == 0
    summary = convert(Conversion(folder, tmp_path / "hf", to_hf=True))
    assert_same(read_hf(tmp_path / "hf"), read_hf(HF))
    assert "224 rows of vocabulary padding beyond 800 are left out" in summary.notes[0]


def test_rows_that_nothing_explains_are_kept(tmp_path):
    written = Written("trained", extra=more(8), arguments=dict(padded_vocab_size=None, extra_vocab_size=None))
    folder = write_original(tmp_path / "source", HF, read_hf(HF), written)
    convert(Conversion(folder, tmp_path / "hf", to_hf=True))
    assert_same(read_hf(tmp_path / "hf"), wanted(8))


@pytest.mark.parametrize(
    "size, with_config, said",
    [
        ("7B", False, r"$4 MODEL_SIZE: got '7B'; its vocabulary is 32000, and the checkpoint's embedding has 808 rows: write"),
        ("auto", False, "There is no config.json in "),
        ("auto", True, "its embedding has 808 rows, and config.json's vocabulary 900: put its own there."),
    ],
)
def test_an_embedding_below_the_vocabulary_is_said_once_and_by_what_says_so(size, with_config, said, tmp_path, capsys):
    written = Written("trained", extra=more(8), with_config=with_config)
    folder = write_original(tmp_path / "source", HF, read_hf(HF), written)
    if with_config:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | {"vocab_size": 900}))
    values = {**PRETRAIN_ARGUMENTS, "MODEL_SIZE": size, "PRETRAIN_CHECKPOINT_PATH": folder, "OUTPUT_BASEPATH": tmp_path}
    values |= {"DATASET_PATH": GOLDEN / "data/corpus_text_document"}
    with pytest.raises(SystemExit):
        read("pretrain", [f"{ARGUMENTS['pretrain'][name].flag}={value}" for name, value in values.items()])
    output = capsys.readouterr().err
    assert "1 argument error;" in output and said in output, output


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02r\xff\xff\xff\x7f."], ids=["empty", "cut", "memo"])
def test_the_launcher_leaves_damaged_files_to_the_processes(content, tmp_path):
    (tmp_path / "mp_rank_00").mkdir()
    (tmp_path / "mp_rank_00/model_rng.pt").write_bytes(content)
    assert read_vocabulary_rows(tmp_path) is None


KEYS = {
    "a tuple in tuples as a key": b"\x80\x02}N" + b"\x85" * 2_000_000 + b"Ns.",
    "a tuple of two, twice, and so on, as a key": b"\x80\x02}N" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b"Ns.",
    "a list in itself": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n]q\0h\0ah\0h\0h\0\x87R.",
}


def test_the_launcher_survives_what_python_hashes_for_ever(tmp_path):
    """In a process of its own: Python ends without a word where it hashes a tuple that is nested two million times."""
    for name, pickled in KEYS.items():
        folder = tmp_path / name / "mp_rank_00"
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "model_rng.pt", "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
    program = (
        "import sys; from pathlib import Path; from megatron_patch.formats.structure_2023 import read_vocabulary_rows as read; "
        "print(*(read(Path(folder)) for folder in sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *(str(tmp_path / name) for name in KEYS)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (0, "None None None\n"), result.stderr


def test_the_launcher_runs_nothing(tmp_path):
    """What a file names is a name there, neither looked up nor called; the processes say that it was refused."""

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    folder = write_original(tmp_path / "source", HF, read_hf(HF), Written("2023-11-10", extra=more(8)))
    path = folder / "release/mp_rank_00/model_rng.pt"
    content = torch.load(path, weights_only=False)
    torch.save(content | {"rng_state": [Payload()]}, path)
    assert read_vocabulary_rows(folder / "release") is None and not (tmp_path / "made").exists()
