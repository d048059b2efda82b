"""Data preparation's list. Imports no torch.

The command that the script calls can be typed with flags alone. There the input is the only argument that must be
given.
"""

from __future__ import annotations

from megatron_patch.arguments.argument import WHOLE_MOST, Argument, Kind, Range, Script, flagged, numbered
from megatron_patch.records.skipped import MAX_DOCUMENT_MB


def _path(name: str, flag: str, zh: str, en: str, kind: Kind = "path", required: bool = False) -> Argument:
    return Argument(name, flag, kind, zh, en, required=required, filled=True)


PREPARE = Script(
    name="run_make_pretraining_dataset.sh",
    path="toolkits/pretrain_data_preprocessing/run_make_pretraining_dataset.sh",
    zh="预训练数据处理：JSON 文件 → .bin/.idx；原始 WuDao → wudao_train.json、wudao_valid.json",
    en="data preparation: JSON files → .bin/.idx for pre-training, and raw WuDao → wudao_train.json, wudao_valid.json",
    documented=numbered(
        _path("MEGATRON_PATH", "--megatron-path", "设置开源Megatron的代码路径",
              en="Accepted for the script's sake; preparation needs no Megatron."),
        _path("MEGATRON_PATCH_PATH", "--megatron-patch-path", "设置Megatron Patch的代码路径",
              en="This project's folder, whose code then runs."),
        _path("input_data_dir", "--input", "打包后的wudao数据集的文件夹路径", kind="paths", required=True,
              en="Files, or folders of .jsonl, .json, .jsonl.zst, .jsonl.gz, .parquet."),
        Argument("tokenizer", "--tokenizer", "text", "分词器: llamabpe", choices=("llamabpe",), default="llamabpe",
                 en="Only a name, which the files are called by."),
        _path("output_data_dir", "--output-dir", "输出到bin和idx文件目录",
              en="The folder in which wudao_llamabpe_text_document.bin and .idx are written."),
        _path("load_dir", "--tokenizer-folder", "tokenizer文件路径",
              en="The folder with tokenizer.model or tokenizer.json."),
    ),
    flags=(
        flagged("--output-prefix", "path", "不用 --output-dir 时：写出 PREFIX.bin 和 PREFIX.idx", filled=True,
                en="Instead of --output-dir: writes PREFIX.bin and PREFIX.idx."),
        flagged("--sft-output-dir", "path", "在该文件夹写出 wudao_train.json 和 wudao_valid.json", filled=True,
                en="Writes wudao_train.json and wudao_valid.json there, as JSON lists."),
        flagged("--valid-fraction", "number", "--sft-output-dir：验证记录的比例", range=Range(0, 1), default=0.01,
                en="For --sft-output-dir: of the records, the share for validation."),
        flagged("--json-key", "texts", "记录的文本取这些键中它所具有的第一个", default=("text", "content"),
                en="A record's text is the first of these that it has."),
        flagged("--text-keys", "texts",
                zh="代替 --json-key：文本由这些键的值依次组成，以换行连接，如 title,content；缺少或为空的略过",
                en="Instead of --json-key: the values of all these, such as title,content, joined by line ends; "
                "missing and empty ones are passed over."),
        flagged("--clean", "choice", "wudao：原项目的清洗", choices=("none", "wudao"), default="none",
                en="wudao: the original's cleaning."),
        flagged("--workers", "whole", "分词的进程数；不写则为可用的处理器数", range=Range(1, WHOLE_MOST),
                en="Processes that tokenize; without it, as many as there are processors to use."),
        flagged("--shard", "text", "I/N：只处理输入的第 I 份（共 N 份），写到 PREFIX-0000I-of-0000N；merge-data 合并各份",
                en="I/N: part I of N of the input alone, into PREFIX-0000I-of-0000N; megatron-patch merge-data joins the parts."),
        flagged("--split-by-size", "size", "把输入分成约这么大的多份，如 50GB，写到 PREFIX-0000I-of-0000N；混合时读作一份",
                en="Several pairs, one for about so many bytes of input, such as 50GB, into PREFIX-0000I-of-0000N; a blend reads "
                "them as one."),
        flagged("--tokenizer-engine", "choice", choices=("auto", "reference"), default="auto",
                zh="reference：SentencePiece（tokenizer.json 用 tokenizers）；auto：输入较大且 fastokens 结果相同时用它",
                en="reference: SentencePiece, or tokenizers for tokenizer.json; auto: fastokens where it gives the same ids "
                "and the input is large."),
        flagged("--max-bad-fraction", "number", "允许不是 JSON 或没有文本键的记录的比例", range=Range(0, 1), default=0.001,
                en="Of the records, the share that may be no JSON or lack the key."),
        flagged("--max-document-mb", "whole", "一行或一个列表项的最大大小，单位 10^6 字节；更长的算坏记录，且不读入内存",
                range=Range(1, WHOLE_MOST), default=MAX_DOCUMENT_MB,
                en="10^6 bytes of a line or list item; a longer one is bad, and is not held in memory."),
        flagged("--no-append-eod", "boolean", "文档之后不加结束 token", default=False, en="No end token after a document."),
        flagged("--overwrite", "boolean", "替换由其他输入得到的一对文件，或更早的划分", default=False,
                en="Replace a pair that other input made, or an earlier split."),
    ),
)  # fmt: skip
