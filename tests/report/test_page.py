"""The page: what it holds is what was trained, and nothing in it is taken for HTML or fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from megatron_patch.cli import report as command
from megatron_patch.config import Options
from megatron_patch.language import choice
from megatron_patch.report.words import WORDS
from tests.launching import ROOT
from tests.report.made_runs import opening, training, write_start
from tests.tiny import tiny_config

PAGE = ROOT / "megatron_patch" / "report" / "page"
OWN = [path for path in PAGE.glob("*.js") if "uPlot" not in path.name]
EVIL = "</script><img src=x onerror=alert(1)>&amp;\u2028'\"${1}%%data%%"


class Parsed(HTMLParser):
    """The elements of a page in their order, their attributes, and the texts of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs
        if tag in ("script", "style"):
            self.inside.append("")

    def handle_data(self, data):
        if self.cdata_elem is not None:
            self.inside[-1] += data

    @property
    def content(self):
        return json.loads(self.inside[1])


def two_runs(folder):
    """Two runs of different learning rate; the second's name and data path would like to be HTML."""
    first = tiny_config(name="dsw-pretrain-plain", output_path="/mnt/out", lr=1e-3)
    # A folder's name cannot hold a slash, so that one loses the end tag's; arguments keep it.
    second = replace(tiny_config(name=EVIL.replace("/", "%"), output_path=EVIL, lr=3e-4), options=Options(tokenizer_path=EVIL))
    for config, loss in ((first, 2.0), (second, 3.0)):
        lines = [training(config, place, place, loss=loss + 1 / place, learning_rate=config.lr) for place in range(1, 31)]
        write_start(folder, config, 0, [opening(config), *lines, ("stop", {"iteration": 30, "reason": f"error: {EVIL}"})])
    return first, second


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the folder of the runs, the file, the page's text)"""
    folder = tmp_path_factory.mktemp("runs")
    two_runs(folder)
    target = folder / "page" / "report.html"
    assert command.main([str(folder), "--output", str(target)]) == 0
    return folder, target, target.read_text(encoding="utf-8")


def test_the_page_holds_what_was_trained(made):
    one, two = Parsed(made[2]).content["runs"]  # `<` sorts before letters
    assert [run["curves"]["loss"]["mean"][-1] for run in (one, two)] == pytest.approx([3 + 1 / 30, 2 + 1 / 30], rel=1e-5)
    assert one["axes"]["iteration"] == list(range(1, 31)) and one["axes"]["tokens"][-1] == 30 * 2 * 16
    assert (one["count"], one["facts"]["iteration"]) == ([1] * 30, 30)
    rows = {row["name"]: row for row in Parsed(made[2]).content["arguments"]}
    assert (rows["LR"]["values"], rows["LR"]["differs"], rows["TP"]["differs"]) == (["0.0003", "0.001"], True, False)


def test_names_and_arguments_stay_data(made):
    page = Parsed(made[2])
    assert page.elements == ["html", "head", "meta", "meta", "meta", "meta", "meta", "link", "title", "style", "body", "noscript",
                             "script", "script"]  # fmt: skip
    run = page.content["runs"][0]
    assert run["name"] == EVIL.replace("/", "%") and run["facts"]["reason"] == f"error: {EVIL}"
    assert next(row for row in page.content["arguments"] if row["name"] == "--tokenizer-path")["values"][0] == EVIL
    assert made[2].count("onerror") == page.inside[1].count("onerror") > 2
    assert not re.search("[<>&\u2028\u2029]", page.inside[1])


def test_nothing_is_fetched_and_only_the_page_s_own_script_runs(made):
    page = Parsed(made[2])
    links = [value for name, value in page.attributes if name in ("src", "href", "action", "srcset")]
    assert links == ["data:,"] and not re.search(
        r"url\(|@import|fetch\(|XMLHttpRequest|import\(", page.inside[0] + page.inside[2]
    )
    policy = next(value for _, value in page.attributes if value and value.startswith("default-src 'none'"))
    for text in (page.inside[0], page.inside[2]):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert len(made[2]) - len(page.inside[1]) < 200_000
    assert "Permission is hereby granted" in page.inside[2]  # the licence of the charts' library
    for path in OWN:
        assert not re.search("innerHTML|outerHTML|insertAdjacent|document.write|eval|new Function", path.read_text()), path


def test_every_word_of_the_page_has_its_chinese():
    text = "".join(path.read_text(encoding="utf-8") for path in OWN)
    said = set(re.findall(r'\bt\("([^"]+)"', text)) | set(re.findall(r'\bt\([^")]*\? "([^"]+)" : "', text))
    said |= set(re.findall(r'\bt\([^")]*\? "[^"]+" : "([^"]+)"', text)) | {"Arguments", "Flags", "Model", "Software and machine"}
    assert said == set(WORDS)
    for english, chinese in WORDS.items():
        assert set(re.findall(r"\{\d\}", english)) == set(re.findall(r"\{\d\}", chinese)), english


def test_the_command_speaks_and_keeps_other_files(made, capsys):
    folder, target, _ = made
    assert command.main([str(folder), "--output", str(target), "--points", "10", "--language", "zh"]) == 0
    assert capsys.readouterr().out.startswith(f"已写入：{target}（2 次训练")
    choice.ask(None)
    content = Parsed(target.read_text(encoding="utf-8")).content
    assert content["words"] == WORDS and content["runs"][0]["count"] == [3] * 10
    other = folder / "mine.html"
    other.write_text("<p>mine</p>")
    assert command.main([str(folder), "--output", str(other)]) == 2
    assert "is no report" in capsys.readouterr().err and other.read_text() == "<p>mine</p>"
    with pytest.raises(SystemExit) as ended:
        command.main([str(folder), "--output", str(folder), "--points", "1", "--sort", "x"])
    found = capsys.readouterr().err
    assert ended.value.code == 2 and f"write {folder / 'report.html'}" in found and "--points" in found and "--sort" in found


_CHECKS = """
const own = require(process.argv[1]), {values, counts} = JSON.parse(process.argv[2]);
const single = values.flatMap((value, place) => Array(counts[place]).fill(value));
const ends = counts.reduce((found, count) => [...found, (found.at(-1) ?? -1) + count], []);
const one = own.smoothed(values, counts, 25), all = own.smoothed(single, null, 25);
console.log(JSON.stringify({
  smooth: one, expanded: ends.map(end => all[end]), raw: own.smoothed(values, counts, 1),
  near: [own.nearest([1, 4, 9], 6), own.nearest([1, 4, 9], 99), own.nearest([], 1)],
  ticks: [own.linearTicks(0, 1, 5), own.logTicks(1e-6, 1e-4, 5), own.logTicks(1.9, 2.6, 4)],
  said: [own.figure(1e-5), own.figure(2.34567), own.figure(null), own.counted(1234567), own.bytes(2 ** 31), own.duration(90061)],
}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_s_arithmetic():
    """Smoothing over bins is the weighted mean of their lines; ticks and texts are as a reader expects them."""
    values, counts = [5.0, 3.0, 4.0, 2.0], [3, 1, 7, 2]
    arguments = ["node", "-e", _CHECKS, str(PAGE / "numbers.js"), json.dumps({"values": values, "counts": counts})]
    found = json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    single = np.repeat(values, counts)
    expected = [np.average(single[:end], weights=0.96 ** np.arange(end)[::-1]) for end in np.cumsum(counts)]
    assert found["smooth"] == pytest.approx(expected, rel=1e-9) and found["expanded"] == pytest.approx(expected, rel=1e-9)
    assert found["raw"] == values and found["near"] == [1, 2, -1]
    assert found["ticks"][0] == [0, 0.2, 0.4, 0.6, 0.8, 1] and found["ticks"][1] == [1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4]
    assert found["ticks"][2] == [2, 2.2, 2.4, 2.6]
    assert found["said"] == ["1e-5", "2.346", "–", "1.23 M", "2 GiB", "25 h 1 min"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_in_a_browser(made):
    """The script runs to its end: cards, charts and tables are there, and a name is text."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(["chromium", *flags, made[1].as_uri()], capture_output=True, text=True, timeout=120)
    page = Parsed(done.stdout)
    assert page.elements.count("canvas") == page.elements.count("figure") == 2  # loss and learning rate
    assert page.elements.count("article") == 4 and page.elements.count("img") == 0
    assert "&lt;img src=x onerror" in done.stdout
