"""Chinese of `report/`, its arguments and its command; `report/words.py` has the page's own words."""

from __future__ import annotations

SENTENCES = {
    "it is a folder: write {}.": "这是文件夹：请写 {0}。",
    "There is no folder {}; give a training's OUTPUT_BASEPATH.": "没有文件夹 {0}；请给出训练的 OUTPUT_BASEPATH。",
    "{} holds no run: nothing in log/ or tensorboard/; give a training's OUTPUT_BASEPATH.": (
        "{0} 中没有训练：log/ 和 tensorboard/ 中都没有内容；请给出训练的 OUTPUT_BASEPATH。"
    ),
    "None of these runs has a line of training yet; try again when the first log line is there.": (
        "这些训练都还没有训练记录；请在出现第一行日志后再试。"
    ),
    "{} has no line of training yet, and is left out.": "{0} 还没有训练记录，已略去。",
    "{} has no metrics.jsonl; its numbers are TensorBoard's.": "{0} 没有 metrics.jsonl；数值取自 TensorBoard 文件。",
    "{} is no file of TensorBoard's, or is damaged; remove it, or leave its run out.": (
        "{0} 不是 TensorBoard 文件，或已损坏；请删除它，或不要列入这次训练。"
    ),
    "{}: unreadable lines, such as one that a kill tore: {}.": "{0}：无法读取的行（例如进程被终止时写了一半的行）：{1}。",
    "The arguments of {} are not shown: {}": "不显示 {0} 的参数：{1}",
    "{} is there and is no report; give --output another name, or remove that file.": (
        "{0} 已存在且不是报告；请为 --output 换一个名字，或删除该文件。"
    ),
    "{} run": "{0} 次训练",
    "{} ({}, {} kB)": "{0}（{1}，{2} kB）",
}
