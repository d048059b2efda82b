"""The list of merge-data. Imports no torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import Argument, Script, flagged

MERGE = Script(
    name="megatron_patch.cli.merge_data",
    path="",
    zh="把多对 .bin/.idx 合并为一对，例如 --shard 的各份",
    en="several .bin/.idx pairs into one, such as the parts of --shard",
    documented=(
        Argument("PREFIX", "", "paths", "各对文件的前缀，按合并的顺序", filled=True, required=True,
                 en="The prefixes of the pairs, in the order in which they are joined."),
    ),
    flags=(
        flagged("--output-prefix", "path", "写出 OUTPUT.bin 和 OUTPUT.idx", filled=True, required=True,
                en="Writes OUTPUT.bin and OUTPUT.idx."),
        flagged("--overwrite", "boolean", "替换已有的另一对文件", default=False, en="Replace another pair that is there."),
    ),
)  # fmt: skip
