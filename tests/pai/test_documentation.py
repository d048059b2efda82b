"""docs/pai.md and docs/zh/pai.md: what they name exists, and both say the same.

Their blocks are fenced as `shell`: tests/documents runs what is fenced as `sh`, and neither Docker nor PAI is here.
"""

from __future__ import annotations

import re
import shlex

import pytest

from tests.launching import ROOT
from tests.pai.job_files import DLC, PREPARATIONS, body, load_submit
from tests.pai.test_job_bodies import FILLED

PAGES = {"en": ROOT / "docs" / "pai.md", "zh": ROOT / "docs" / "zh" / "pai.md"}
# Source: the pages "PAI CLI overview" and "PAI DLC job — Distributed training".
SUBMIT_FLAGS = {
    "--name", "--job-type", "--workspace-id", "--image", "--command", "--worker-count", "--worker-spec", "--resource-id", "--cpu",
    "--memory", "--gpu", "--gpu-type", "--shared-memory", "--role", "--body-json", "--dry-run", "--region", "--profile",
    "--output",
}  # fmt: skip


def commands(page: str) -> list[list[str]]:
    """The words of each command in a page's shell blocks."""
    blocks = re.findall(r"```shell\n(.*?)```", PAGES[page].read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_are_there(page):
    text = PAGES[page].read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links and all((PAGES[page].parent / link).exists() for link in links)
    paths = re.findall(r"`((?:examples|docs|tests)/[\w./-]+)`", text)
    assert "examples/llama2/llama2_dsw.ipynb" in paths and all((ROOT / path).exists() for path in paths)
    named = set(re.findall(r"`(\w+\.(?:json|yaml|py))`", text)) - {"job.json"}
    assert named == {path.name for path in DLC.iterdir() if path.is_file()}


def test_pai_s_command_line_is_used_as_documented():
    for words in commands("en"):
        if words[:4] == ["pai", "dlc", "job", "submit"]:
            assert {word for word in words[4:] if word.startswith("--")} <= SUBMIT_FLAGS


def test_what_one_job_writes_is_what_the_next_one_reads():
    """Preparation's folder, in which the parts are merged as the page says, has the pair of pre-training."""
    written = {shlex.split(body(name)["UserCommand"])[10] for name in PREPARATIONS}
    assert written == {"${WORK_DIR}/llama2-datasets/wudao"}
    (merge,) = [words for words in commands("en") if words[:2] == ["megatron-patch", "merge-data"]]
    assert merge[2:] == [
        f"/mnt/workspace/llama2-datasets/wudao/*-of-{body('prepare_ecs')['JobSpecs'][0]['PodCount']:05}.made",
        *("--output-prefix", "/mnt/workspace/llama2-datasets/wudao/wudao_llamabpe_text_document"),
    ]
    for path in sorted(DLC.glob("pretrain_*")):
        assert " ${WORK_DIR}" + merge[-1].removeprefix("/mnt/workspace") + " " in path.read_text(encoding="utf-8"), path.name


def test_submit_is_called_with_its_own_flags_and_fills_in_all(capsys):
    (call,) = [words for words in commands("en") if words[:2] == ["python", "submit.py"] and "--follow" in words]
    given = load_submit().arguments(call[2:])
    assert given.follow and (DLC / given.body).is_file()
    assert load_submit().main([str(DLC / given.body), *call[3:], "--dry-run"]) == 0, capsys.readouterr().err
    assert given.values.keys() <= FILLED.keys()


def test_both_languages_have_the_same_commands_and_variables():
    def table(page: str) -> list[list[str]]:
        rows = [line for line in PAGES[page].read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
        return [re.findall(r"`[A-Z][A-Z_]+`", row.split("|")[1]) for row in rows]

    assert commands("en") == commands("zh") and len(commands("en")) >= 8
    assert table("en") == table("zh")


def test_the_variables_that_are_read_are_named():
    code = (ROOT / "megatron_patch" / "arguments" / "processes.py").read_text(encoding="utf-8")
    read = set(re.findall(r'"((?:[A-Z]+_)+[A-Z]+|RANK)"', code)) - {"TORCHELASTIC_RUN_ID"}
    named = set(re.findall(r"`([A-Z_]+)`", PAGES["en"].read_text(encoding="utf-8")))
    ours = read - {"GROUP_WORLD_SIZE", "GROUP_RANK", "LOCAL_WORLD_SIZE"}  # torchrun's, in the processes that it starts
    assert len(ours) >= 10 and ours <= named
