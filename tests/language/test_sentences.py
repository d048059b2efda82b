"""Chinese stands for every sentence that a user reads, with the same values in it; border.py has the rest."""

from __future__ import annotations

import functools
import random
import re
from pathlib import Path

import pytest

from megatron_patch.language import choice
from megatron_patch.language.sentences import _shapes, catalogue, counted, fill, find, in_language
from megatron_patch.train.log import RunLog
from tests.arguments.advice import right_commands
from tests.arguments.test_advice import WRONG
from tests.language import border
from tests.language.templates import templates
from tests.launching import ROOT
from tests.tiny import tiny_config

PACKAGE = ROOT / "megatron_patch"
# Read as prose and are none: a user's own words, values of another program, a sentence's joints.
NONE = {
    "{} -m pip install --force-reinstall {}", "'torch>=2.11,<2.14' --index-url https://download.pytorch.org/whl/cu126",
    "${} {}", "{} {}", "{}: {}", "{}: {}\n{}", "{}: {} {}", "{} ({})", "cd {} && {}", "--resume-from {}", "{} TE {}",
    "{} {} TE {}", "{} {} TE MOE {}", "MEGATRON_PATCH_PATH input_data_dir tokenizer output_data_dir load_dir",
    " --gradient-accumulation-steps {}", "--pair-micro-batches false", "a {}", "of {}", "Connection closed by peer",
    "Connection reset by peer", " Including non-PyTorch memory", "Caught {} in DataLoader worker",
    "usage: python -m megatron_patch.arguments.tables [{}]", "Error while deserializing header: ", "not fully covered",
    " and no ", "{} it was {}.", "{} {}{}: {}.{}", "{} of {}", "the file",
    "{}: {}; {}.", "usage: python -m megatron_patch.launch {{{}}} --flags", "{} It was {}.",
    ", times the factor {} of its {} rope_scaling",
    "{}: the model's max_position_embeddings becomes {}, in its checkpoints and in what is exported.",
    "lm loss", "lm loss validation", " vs samples",
    "a vocabulary of {} rows is too small for it: write a smaller one.",
}  # fmt: skip
# Made of several literals, or by a library, or in words that templates() does not take for prose.
JOINED = {
    "PRETRAIN_CHECKPOINT_PATH {} is a training checkpoint {}{}: {}.{}",
    "max_position_embeddings {}, times the factor {} of its {} rope_scaling",
    "{}: the model's max_position_embeddings becomes {}, in its checkpoints and in what is exported. It was {}.",
    "The run goes on from {} with other settings ({}), and saves below {}.",
    "{} holds {} ({} is there).", "Next:", "interrupted.", "{}, for example", "KV groups", "does not exist",
    "argument {}: expected one argument", "argument {}: expected at least one argument",
    "argument {}: invalid choice: {} (choose from {})", "the following arguments are required: {}",
    "a number of at least {}", "a number above {}", "a number from {} to {}", "a number from above {} to {}",
    "a number from {} to below {}", "a number from above {} to below {}", "{} ({}, {} kB)",
}  # fmt: skip


def sources() -> list[Path]:
    """Every module whose sentences are translated."""
    return [path for path in PACKAGE.rglob("*.py") if not any(re.search(part, str(path)) for part in border.ENGLISH)]


@functools.cache
def spoken_templates() -> dict[str, str]:
    """Template → where it stands."""
    return {text: f"{path.relative_to(ROOT)}:{line}" for path in sources() for line, text in templates(path)}


@pytest.fixture
def chinese():
    choice.ask("zh")
    yield
    choice.ask(None)


def test_every_sentence_has_its_chinese():
    known = catalogue().keys() | NONE | border.NONE
    absent = {text: place for text, place in spoken_templates().items() if text not in known and "python -c" not in text}
    assert not absent, absent


def test_no_chinese_stands_for_a_sentence_that_has_gone():
    stale = set(catalogue()) - set(spoken_templates()) - JOINED - border.JOINED
    assert not stale, stale


@pytest.mark.parametrize("english", sorted(catalogue()))
def test_a_finished_sentence_is_found_again_with_its_values(english: str, chinese):
    count = len(re.findall(r"(?<!\{)\{\}(?!\})", english))
    literals = re.split(r"(?<!\{)\{\}(?!\})", english)
    # Behind another hole mostly nothing stands.
    values = ["" if place and not literals[place] else f"/数据/v{place}" for place in range(count)]
    filled = catalogue()[english].format(*values)
    # `{1:.0}` leaves a value out, such as English's `is` or `are`.
    left_out = set(re.findall(r"\{([0-9]+):\.0\}", catalogue()[english]))
    assert all(value in filled for place, value in enumerate(values) if str(place) not in left_out)
    assert filled == fill(english, *values)
    if len("".join(literals)) >= 9 and " " in english.strip():  # a shorter one would be found in anything
        assert in_language(english.format(*values)) == filled


def test_what_is_in_no_catalogue_stays_english(chinese):
    for text in ("Something else went wrong here.", "", "no", "a path /a b/c"):
        assert in_language(text) == text
    assert find("nothing of this kind") == (None, ())
    assert in_language("x " * 5000) == "x " * 5000


def test_sentences_within_sentences(chinese):
    inner = "There is no folder /a b; give a checkpoint's root, or one iteration's folder in it."
    said = in_language(f"{inner} It takes the folder that model_convertor.sh made, or none.")
    assert said.startswith("没有文件夹 /a b；") and said.endswith("这里需要 model_convertor.sh 生成的文件夹，或 none。")
    assert "there" not in said
    assert (counted(1, "file"), counted(3, "file")) == ("1 个文件", "3 个文件")
    choice.ask("en")
    assert (counted(1, "file"), counted(3, "file")) == ("1 file", "3 files")


# Finished lines, and below each its Chinese.
LINES = [
    pair.split("\n") for pair in (Path(__file__).parent / "lines.txt").read_text(encoding="utf-8").rstrip("\n").split("\n\n")
]


@pytest.mark.parametrize(("english", "wanted"), LINES)
def test_sentences_in_a_row_and_behind_the_name_of_their_file(english, wanted, chinese):
    assert in_language(english) == wanted


def test_a_line_is_compared_with_few_templates():
    """All that a run logs passes through: what is compared with every template must stay a small part of them."""
    places = _shapes()
    assert sum(map(len, places.values())) > 800
    assert max(map(len, places.values())) < 120


def test_the_log_file_is_english_and_megatron_s_lines_stay(chinese, tmp_path, capsys):
    log = RunLog(tiny_config(output_path=str(tmp_path)), active=True)
    log.line("  starting from random weights, seed 7")
    log.iteration_line(" stopping at iteration 3 as asked; the same command goes on from here.")
    log.close()
    console = capsys.readouterr().out.splitlines()
    assert console == ["  从随机权重开始，种子 7", " stopping at iteration 3 as asked; the same command goes on from here."]
    assert "starting from random weights, seed 7" in (log.folder / "train.log").read_text(encoding="utf-8")


def test_findings_are_chinese_from_end_to_end(chinese, tmp_path, monkeypatch):
    """Whatever is typed wrong: no three English words in a row are left, but what was typed."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GPUS_PER_NODE", "4")
    draw, seen = random.Random(1), 0
    for _ in range(12):
        for command in right_commands(tmp_path).values():
            listed = [one for one in (*command.script.documented, *command.script.flags) if one.kind in WRONG]
            several = draw.sample(listed, min(5, len(listed)))
            wrong = command.changed(**{one.dest: draw.choice(WRONG[one.kind]) for one in several}, language="zh")
            for finding in wrong.findings():
                choice.ask("zh")
                seen += 1
                assert not re.search(r"[a-z]+ [a-z]+ [a-z]+", str(finding).replace(str(tmp_path), "")), str(finding)
    assert seen > 150


@pytest.mark.parametrize(
    ("environ", "language"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_MESSAGES": "zh_TW.UTF-8", "LANG": "en_US.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LANG": "zh_CN"}, "zh"),
        ({}, "en"),
    ],
)
def test_the_locale_decides_unless_the_flag_does(environ, language):
    assert choice.spoken(environ) == language
    choice.ask("zh")
    assert choice.spoken(environ) == "zh"
    choice.ask(None)
