"""What contributors are told is true: commands exist, YAML parses, checks are the same, versions have dates."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import tomllib

import pytest
import yaml

from tests.documents.markdown import DOCUMENTS, blocks, code_words, commands, read
from tests.import_graph import ROWS
from tests.launching import ROOT

YAML = sorted(
    str(path.relative_to(ROOT))
    for pattern in (".github/**/*.yml", ".pre-commit-config.yaml", "mkdocs.yml")
    for path in ROOT.glob(pattern)
)
PYTHONS = ["3.11", "3.12", "3.13"]


class _WithTags(yaml.SafeLoader):
    """mkdocs.yml names Python functions by tags, which are read as plain values here."""


_WithTags.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def parsed(name: str):
    return yaml.load(read(name), _WithTags)


@pytest.mark.parametrize("name", YAML)
def test_yaml_parses(name):
    assert isinstance(parsed(name), dict)


def test_the_workflow_tests_every_python_that_the_package_takes():
    jobs = parsed(".github/workflows/test.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == PYTHONS
    assert any(step.get("run", "").startswith("make test ") for step in jobs["test"]["steps"])
    assert tomllib.loads(read("pyproject.toml"))["project"]["requires-python"] == ">=3.11,<3.14"


def test_issue_forms_have_what_github_asks_for():
    for name in ("bug", "idea"):
        form = parsed(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert {"name", "description", "body"} <= set(form)
        assert all(part["attributes"]["label"] for part in form["body"])
        identifiers = [part["id"] for part in form["body"]]
        assert len(identifiers) == len(set(identifiers))


def dry_run(target: str) -> subprocess.CompletedProcess[str]:
    """What `make target` would do."""
    # As outside of make, whose flags, -j among them, a test under `make test` inherits; and in English.
    values = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", "-n", target], cwd=ROOT, env=values | {"LC_ALL": "C"}, capture_output=True, text=True)


def test_make_check_and_pre_commit_run_the_same():
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in parsed(".pre-commit-config.yaml")["repos"][0]["hooks"]]
    assert [hook.split()[0] for hook in hooks] == ["ruff", "ruff", "mypy", "shellcheck"]
    planned = {target: dry_run(target).stdout for target in ("check", "test")}
    assert all(hook in planned[target] for hook in hooks for target in planned)


def test_every_make_command_that_is_named_has_a_target():
    named = {
        match
        for name in DOCUMENTS
        for words in (code_words(read(name)), *map(commands, blocks(read(name))))
        for word in words
        for match in re.findall(r"^make ([a-z]+)", word)
    }
    assert {"demo", "test", "check", "docs", "gpu", "fuzz", "matrix"} <= named
    planned = {target: dry_run(target) for target in named}
    # A name that stands in .PHONY alone has nothing to be done.
    idle = {target for target, done in planned.items() if done.returncode or "Nothing to be done" in done.stdout}
    assert idle == set()


def test_the_rooms_on_the_page_are_those_that_are_held():
    page = read("AGENTS.md").split("## Rooms")[1].split("## Rules")[0]
    rows = [tuple(row.split(", ")) for row in re.findall(r"^    ([a-z_, ]+)$", page, re.MULTILINE)]
    held = [set(row) for row in reversed(ROWS)]
    assert [set(row) for row in rows] == held, "write the rows of tests/import_graph.py into AGENTS.md"


def test_the_editors_line_length_is_ruff_s():
    editor = configparser.ConfigParser()
    editor.read_string("[top]\n" + read(".editorconfig"))
    assert editor["*"]["max_line_length"] == str(tomllib.loads(read("pyproject.toml"))["tool"]["ruff"]["line-length"])


def test_the_changelog_s_versions_have_dates_and_the_known_sections():
    text = read("CHANGELOG.md")
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in versions[1:]) and versions[1:]
    dates = [version[-10:] for version in versions[1:]]
    assert dates == sorted(dates, reverse=True)
    sections = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
