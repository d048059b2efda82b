"""Chinese of `conversion/` and `preparation/`."""

from __future__ import annotations

SENTENCES = {
    # convert
    "EXTRA_VOCAB_SIZE is {}, and {}": "EXTRA_VOCAB_SIZE 是 {0}，而 {1}",
    "EXTRA_VOCAB_SIZE 0: the {} rows added when the checkpoint was made are kept.": "EXTRA_VOCAB_SIZE 0：保留检查点生成时增加的 {0} 行。",
    "EXTRA_VOCAB_SIZE is {}, and the checkpoint was made with {}; write {}, or 0, which keeps them.": (
        "EXTRA_VOCAB_SIZE 是 {0}，而检查点生成时是 {1}；请写 {2}，或写 0（保留这些行）。"
    ),
    "megatron_patch.json there says that the prompts of the fine-tuning had the form {}.": (
        "其中的 megatron_patch.json 记录了微调时提示的格式：{0}。"
    ),
    "--verify-logits needs a folder that transformers loads; {} holds Meta's files: leave it out.": (
        "--verify-logits 需要 transformers 能加载的文件夹；{0} 中是 Meta 的文件：请去掉该标志。"
    ),
    "a Megatron checkpoint": "Megatron 检查点",
    "{} is not {}, which mg2hf = {} converts from.": "{0} 不是 {1}，而 mg2hf = {2} 从后者转换。",
    "{} needs {} GB, and the disk of {} has {} GB free; make room there.": "{0} 需要 {1} GB，而 {2} 所在磁盘剩余 {3} GB；请腾出空间。",
    "writing": "写入",
    "verifying": "校验",
    "opening the source": "打开源文件",
    "comparing sums": "比对校验和",
    "comparing logits": "比对 logits",
    # verify, verify_logits
    "{}: {} is {} {}; it must be {} {}.": "{0}：{1} 是 {2} {3}；应为 {4} {5}。",
    "{}: tensor {} holds a NaN or an infinity, in row {} first.": "{0}：张量 {1} 含有 NaN 或无穷大，最先出现在第 {2} 行。",
    "{}: tensor {} differs from the source's from row {} on; convert again.": "{0}：张量 {1} 从第 {2} 行起与源不同；请重新转换。",
    "Logits agree with transformers' to {} at a largest of {} (fp32, CPU).": (
        "logits 与 transformers 一致：最大差 {0}，最大值 {1}（fp32，CPU）。"
    ),
    "--verify-logits: logits differ by up to {} at a largest of {}; allowed is {}. Either config.json does not belong to the weights, "
    "or this is a fault of the converter: please report it.": (
        "--verify-logits：logits 最大差 {0}，最大值 {1}，允许 {2}。要么 config.json 不属于这些权重，要么是转换器的错误：请报告。"
    ),
    "--verify-logits: {} does not load ({}).": "--verify-logits：{0} 无法加载（{1}）。",
    "--verify-logits needs transformers; run: pip install 'transformers>=5,<6', or leave it out.": (
        "--verify-logits 需要 transformers；请运行：pip install 'transformers>=5,<6'，或去掉该标志。"
    ),
    "status {}": "退出码 {0}",
    # encoding, pair
    "a worker process was killed, for lack of memory most likely; run the command again with fewer --workers, it goes on where it "
    "stopped.": "有一个工作进程被杀掉，很可能是内存不足；请减小 --workers 重新运行同一命令，会从中断处继续。",
    "it has no tokens": "它没有 token",
    "{}.bin and .idx are there already, made from this very input; nothing is done.": "{0}.bin 和 .idx 已由相同的输入生成，无需再做。",
    "{} exist, made from other input; remove them, or add --overwrite.": "{0} 已存在，由别的输入生成；请删除，或加 --overwrite。",
    "{}: an earlier run had other input or settings; beginning anew.": "{0}：先前的运行用的是别的输入或设置；从头开始。",
    "{}: the {} documents of an earlier run are used.": "{0}：使用先前运行的 {1} 个文档。",
    "{}: going on after {} documents of an interrupted run.": "{0}：接着中断的运行，从第 {1} 个文档之后继续。",
    "the input holds no document; nothing is written. Check the files and --json-key.": (
        "输入中没有文档，没有写出任何内容。请检查文件和 --json-key。"
    ),
    "{} of {} records are bad, more than the allowed fraction {}; {} lists them. Mend them, or run again with --max-bad-fraction {}.": (
        "{1} 条记录中有 {0} 条是坏的，超过允许的比例 {2}；详见 {3}。请改正它们，或加 --max-bad-fraction {4} 重新运行。"
    ),
    "{} has {} bytes, and {}/state.json says {}; remove {} to begin anew.": (
        "{0} 有 {1} 字节，而 {2}/state.json 写的是 {3}；要从头开始，请删除 {4}。"
    ),
    "{} is read as input and would be written over; choose another output, or move that file.": (
        "{0} 是输入文件，会被覆盖；请换一个输出，或移走该文件。"
    ),
    "another run is writing {} now; wait for it, or choose another output.": "另一个运行正在写 {0}；请等它结束，或换一个输出。",
    # resumable_state, wudao_split
    "{}: {} documents, {} tokens from {} MB.": "{0}：{1} 个文档，{2} 个 token，来自 {3} MB。",
    "{} bad and {} empty records gave no document; {}_skipped.jsonl lists {}them.": (
        "{0} 条坏记录和 {1} 条空记录没有产生文档；{2}_skipped.jsonl 列出了{3}它们。"
    ),
    "the first of ": "最前面的",
    "made_from is no object with files": "made_from 不是含 files 的对象",
    "{} is no record of a preparation ({}); remove it, and prepare the data again.": (
        "{0} 不是数据制作的记录（{1}）；请删除它，并重新制作数据。"
    ),
    "the validation fraction is {}; it must be at least 0 and below 1.": "验证集比例是 {0}；必须不小于 0 且小于 1。",
    "{} exist; choose another folder, remove them, or add --overwrite to replace them.": (
        "{0} 已存在；请换一个文件夹、删除它们，或加 --overwrite 替换。"
    ),
    "its 'title': {}": "它的 'title'：{0}",
}
