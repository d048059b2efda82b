"""The commands of README and docs, typed from top to bottom in both languages' words, with a tiny model."""

from __future__ import annotations

import re

import pytest

from tests.documents.markdown import PAGES, PAIRS, blocks, commands, read
from tests.documents.workspace import STAND_INS, make_workspace

ELSEWHERE = ("pai",)  # commands of clusters; tests/pai/test_documentation.py reads them


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """(the workspace in which README's commands have run, their output)."""
    workspace = make_workspace(tmp_path_factory.mktemp("walk"))
    return workspace, workspace.run("\n".join(blocks(read("README.md"))))


@pytest.mark.parametrize("english, chinese", PAIRS)
def test_both_languages_have_the_same_commands(english, chinese):
    ours, theirs = ([commands(block) for block in blocks(read(name))] for name in (english, chinese))
    assert ours == theirs


def test_the_walk_of_the_readme_from_an_empty_folder_to_a_hugging_face_model(walked):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    workspace, output = walked
    assert "examples/demo.py" in output and "-m pytest" in output  # what make would have run
    assert re.search(r"iteration +1/ +6103 \|", output) and "saved checkpoint of iteration 1 " in output
    epochs = re.findall(r"validation loss at iteration (\d+)", output)
    assert len(epochs) == 2 and int(epochs[1]) == 2 * int(epochs[0])
    folder = workspace.work / "llama2-ckpts/llama2-7b-finetuned-hf"
    before = AutoModelForCausalLM.from_pretrained(workspace.work / "llama2-ckpts/llama2-7b-hf", dtype="float32")
    after = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokens = AutoTokenizer.from_pretrained(folder)("我们的团队", return_tensors="pt")
    assert not after(**tokens).logits.equal(before(**tokens).logits)


def test_every_stand_in_stands_for_words_that_are_there():
    text = read("README.md")
    assert [pattern for pattern in STAND_INS if not re.search(pattern, text)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_the_commands_of_a_page_are_read_after_the_walk(page, walked):
    workspace, _ = walked
    for block in blocks(read(f"docs/{page}.md")):
        output = workspace.run(block, only_read=True)
        trainings = len(re.findall(r"\bsh run_(?:pretrain|finetune|evaluate|text_generation)_", block))
        assert output.count("would start:") == trainings
