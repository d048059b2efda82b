"""The list of `megatron-patch report`. Imports no torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import Argument, Range, Script, flagged

_OUTPUTS = Argument(
    "OUTPUT_BASEPATH", "", "paths", "一个或多个训练输出文件夹（OUTPUT_BASEPATH），或其 log/、checkpoint/ 下某次训练的文件夹",
    filled=True, required=True,
    en="One or more OUTPUT_BASEPATHs of trainings, or the folder of one run in their log/ or checkpoint/.",
)  # fmt: skip

REPORT = Script(
    name="megatron-patch report",
    path="",
    zh="把一次或多次训练画成一个网页文件",
    en="one page of a run, or of several side by side",
    documented=(_OUTPUTS,),
    flags=(
        flagged("--output", "path", "要写的 HTML 文件；已有的报告会被替换", default="report.html", filled=True,
                en="The HTML file to write; a report that is there is replaced."),
        flagged("--points", "whole", "每条曲线最多的点数；更长的训练按区间给出均值、最小值和最大值",
                range=Range(10, 100_000), default=2000,
                en="Points of a curve at most; of longer runs each has the mean, the least and the most of its lines."),
    ),
)  # fmt: skip
