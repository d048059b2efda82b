"""examples/llama2/llama2_dsw.ipynb runs from end to end without weights, and its stored outputs are of such a run."""

from __future__ import annotations

import re

import nbformat
import pytest

from tests.launching import ROOT, scalars
from tests.pai.notebook import NOTEBOOK, execute

HEADINGS = ("费用说明", "准备工作", "模型格式转换", "数据处理", "继续预训练", "有监督微调", "导出", "看一看结果", "清理")


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_it_runs_from_end_to_end(tmp_path):
    """A workspace without weights, with another name than the default; what the cells made is there, and cleaned up.

    Fewer iterations: settings that are there already are kept.
    """
    work = tmp_path / "工作区"
    work.mkdir()
    (work / "PAI-Megatron-Patch").symlink_to(ROOT)
    cells = code(execute(work, CLEAN_UP="1", TRAIN_TOKENS=str(40 * 16 * 160), EPOCH="1"))
    losses = scalars(work / "output_megatron_llama2", "lm loss")
    assert losses[40] < 0.9 * losses[20], "the first line of pre-training, and the last"
    pictures = [cell for cell in cells if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    assert [cell.source.splitlines()[-1].startswith('print(f"损失') for cell in pictures] == [True, True]
    compared = next(shown(cell) for cell in cells if "训练后" in cell.source)
    before, after = re.fullmatch(r"训练前：(.*)\n\n训练后：(.*)\n", compared, re.DOTALL).groups()
    assert before != after and all(text.startswith("The statement is used to") for text in (before, after))
    kept = {path.name for path in (work / "llama2-ckpts").iterdir()}
    assert kept == {"llama2-7b-hf", "llama2-7b-finetuned-hf"} and not (work / "output_megatron_llama2" / "checkpoint").exists()


def test_its_order_is_that_of_pai_s_gallery(stored):
    assert 17 <= len(stored.cells) <= 33 and stored.cells[0].cell_type == "markdown"
    text = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "markdown")
    places = [text.index(f"## {heading}") for heading in HEADINGS]
    assert text.startswith("# ") and places == sorted(places)


def test_the_commands_are_the_document_s(stored):
    """A `!` cell calls each documented script with its documented number of arguments; a failure ends the run."""
    counts = {"model_convertor.sh": 8, "run_make_pretraining_dataset.sh": 6}
    counts |= {"run_pretrain_megatron_llama.sh": 24, "run_finetune_megatron_llama.sh": 22}
    called = []
    for cell in code(stored):
        found = re.search(r"^!cd \S+ && \\\nsh (\S+) +\\\n((?:.+\\\n)*.+)\nassert _exit_code == 0", cell.source, re.MULTILINE)
        if found:
            words = found[2].replace("\\\n", " ").split()
            documented = words[: words.index("--log-interval")] if "--log-interval" in words else words
            assert len(documented) == counts[found[1]], found[1]
            called.append(found[1])
    assert sorted(called) == sorted([*counts, "model_convertor.sh"])


def test_the_stored_outputs_are_those_of_one_whole_run(stored):
    cells = code(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert NOTEBOOK.stat().st_size < 200_000
    text = "".join(map(shown, cells))
    assert "/mnt/workspace/llama2-ckpts/" in text and not re.search(
        r"(?<!/mnt)/(root/(?!Megatron-LM-230512)|home|tmp|work)\b", text
    )
