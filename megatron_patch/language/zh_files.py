"""Chinese of `formats/` and `records/`: what is wrong with a file."""

from __future__ import annotations

SENTENCES = {
    # typed
    "it holds a carriage return (\\r), as texts from Windows have at their lines' ends: remove it; sed -i 's/\\r$//' FILE does so in "
    "a whole file.": "它含有回车符（\\r），Windows 文本的行尾常有：请去掉；sed -i 's/\\r$//' 文件 可处理整个文件。",
    "it ends with a line's end: remove it.": "它以换行符结尾：请去掉。",
    "it holds a NUL character, which no path can: write another path.": "它含有 NUL 字符，路径中不能有：请写别的路径。",
    "it has {} bytes, and a path may have {}: write a shorter one.": "它有 {0} 字节，路径最多 {1} 字节：请写短一些的。",
    "a part of it has {} bytes, and a file's name may have {}: write a shorter one.": (
        "其中一段有 {0} 字节，文件名最多 {1} 字节：请写短一些的。"
    ),
    "the system does not let it be looked at ({}): write another path, or mend that.": "系统不允许访问它（{0}）：请写别的路径，或解决此问题。",
    "it takes a folder, which is made where it does not exist, and {} is none: write another path.": (
        "需要一个文件夹，不存在时会创建，而 {0} 不是文件夹：请写别的路径。"
    ),
    "nothing can be written in {}: write another path, or change its permissions.": "{0} 中不能写入：请写别的路径，或修改权限。",
    # json_files, placeholders
    "{} has {} bytes, more than {}; copy the right file there.": "{0} 有 {1} 字节，超过 {2}；请放入正确的文件。",
    "{} is nested too deeply; copy the right file there.": "{0} 嵌套过深；请放入正确的文件。",
    "{} is no JSON: it is not UTF-8 (byte {}); copy the right file there.": "{0} 不是 JSON：不是 UTF-8（第 {1} 字节）；请放入正确的文件。",
    "{} holds half of a surrogate pair, which is no character; copy the right file there.": (
        "{0} 含有半个代理对，不是字符；请放入正确的文件。"
    ),
    "{} is no JSON: {}; copy the right file there.": "{0} 不是 JSON：{1}；请放入正确的文件。",
    "{} holds a {}; it must be one JSON object: copy the right file there.": "{0} 中是 {1}；必须是一个 JSON 对象：请放入正确的文件。",
    "{} is {}; it must be a whole number from {} to {}": "{0} 是 {1}；必须是 {2} 到 {3} 的整数",
    "{} is {}; it must be a number above {}, at most {}": "{0} 是 {1}；必须大于 {2} 且不大于 {3}",
    "a number of more than 30 digits": "超过 30 位的数",
    "{}… ({} characters)": "{0}…（共 {1} 个字符）",
    "{} cannot be read ({}); check its permissions, or copy it again.": "{0} 无法读取（{1}）；请检查权限，或重新复制。",
    "{} is a Git LFS pointer, some 130 bytes that stand for the file itself: run `git lfs pull` in {} (after `git lfs install`), or "
    "download the file.": (
        "{0} 是 Git LFS 指针（约 130 字节，代替文件本身）：请在 {1} 中运行 `git lfs pull`（先运行 `git lfs install`），或下载该文件。"
    ),
    "{} is empty; copy or download it again.": "{0} 是空文件；请重新复制或下载。",
    # layouts of 2023
    "{} and {} are the same rank of two checkpoints; keep one of them there.": "{0} 和 {1} 是两个检查点的同一个 rank；请只保留一个。",
    "{} holds no mp_rank_ folder with weights; copy the checkpoint again.": "{0} 中没有带权重的 mp_rank_ 文件夹；请重新复制检查点。",
    "{} is missing, and ranks beyond it are there; copy the checkpoint again.": "缺少 {0}，而后面的 rank 都在；请重新复制检查点。",
    "{} holds neither {}; copy the checkpoint again.": "{0} 中没有 {1}；请重新复制检查点。",
    "{}, or 0, which keeps them": "{0}，或写 0（保留这些行）",
    "{} has {} rows for a vocabulary of {}, {} of them beyond it: write {}.": "{0} 有 {1} 行，词表为 {2}，超出 {3} 行：请写 {4}。",
    # safetensors, torch files, lazy tensors
    "{} has {} bytes and no whole safetensors header; the file is damaged: copy it again.": (
        "{0} 有 {1} 字节，没有完整的 safetensors 文件头；文件已损坏：请重新复制。"
    ),
    "has a damaged header": "的文件头已损坏",
    "is truncated, or longer than its header says": "被截断，或比文件头所说的长",
    "{} {} ({}); copy it again.": "{0} {1}（{2}）；请重新复制。",
    "{}: tensor {} has dtype {}; allowed are {}: convert it first.": "{0}：张量 {1} 的 dtype 是 {2}；可用的是 {3}：请先转换。",
    "{} changed while it was read; copy it again.": "{0} 在读取时发生变化；请重新复制。",
    "{} changed while it was read; run the command again when it is whole.": "{0} 在读取时发生变化；请在文件完整后重新运行命令。",
    "{} is damaged or was cut off (it has 0 bytes); copy it again.": "{0} 已损坏或被截断（有 0 字节）；请重新复制。",
    "{} is in torch's format from before version 1.6; load it with torch and save it again with torch.save.": (
        "{0} 是 torch 1.6 之前的格式；请用 torch 加载，再用 torch.save 重新保存。"
    ),
    "{} is no file that torch.save wrote (it begins with {}); copy it again.": "{0} 不是 torch.save 写的文件（开头是 {1}）；请重新复制。",
    "{}: tensor {} is stored with strides {}; rows must be contiguous: save it again.": (
        "{0}：张量 {1} 以步长 {2} 存储；各行必须连续：请重新保存。"
    ),
    "{} ends inside tensor {}; the file is truncated: copy it again.": "{0} 在张量 {1} 中间结束；文件被截断：请重新复制。",
    "{} holds values above 65504, which float16 cannot hold; use --dtype bfloat16.": (
        "{0} 中有大于 65504 的值，float16 无法表示；请用 --dtype bfloat16。"
    ),
    # torch_dist
    "{} is truncated: it has {} bytes, and tensor {} ends at byte {}; copy the checkpoint again.": (
        "{0} 被截断：有 {1} 字节，而张量 {2} 到第 {3} 字节；请重新复制检查点。"
    ),
    "{}: the item of tensor {} is damaged ({}); copy the checkpoint again.": "{0}：张量 {1} 的数据已损坏（{2}）；请重新复制检查点。",
    "{}: tensor {} is stored as {}; expected {}: copy the checkpoint again.": "{0}：张量 {1} 存储为 {2}；应为 {3}：请重新复制检查点。",
    "{} is missing, and tensor {} lies in it; copy the checkpoint again.": "缺少 {0}，张量 {1} 在其中；请重新复制检查点。",
    "{}: tensor {} is stored as {} with strides {}; expected is a contiguous {} of {}.": (
        "{0}：张量 {1} 存储为 {2}，步长 {3}；应为连续的 {4}，形状 {5}。"
    ),
    "{} cannot be read as torch_dist metadata: {}.": "{0} 无法作为 torch_dist 元数据读取：{1}。",
    "{} is no JSON ({}); copy the checkpoint again.": "{0} 不是 JSON（{1}）；请重新复制检查点。",
    "{} holds something else than {}; copy the checkpoint again.": "{0} 的内容不是 {1}；请重新复制检查点。",
    "{} says sharded_backend {}; torch_dist is read: convert it with core.": (
        "{0} 中 sharded_backend 是 {1}；这里只读 torch_dist：请用 core 转换。"
    ),
    "{} and {} lie at one place of {}": "{0} 与 {1} 位于 {2} 的同一位置",
    "{} does not say which files have which CRC-32; copy it again.": "{0} 没有写明各文件的 CRC-32；请重新复制。",
    "{} is damaged: it has the CRC-32 {}, and was written with {}; copy it again.": (
        "{0} 已损坏：它的 CRC-32 是 {1}，写入时是 {2}；请重新复制。"
    ),
    "{} is missing; the checkpoint is not whole: copy it again.": "缺少 {0}；检查点不完整：请重新复制。",
    "{} has {} bytes, and no checkpoint needs more than {}; copy it again.": "{0} 有 {1} 字节，检查点不需要超过 {2}；请重新复制。",
    "{} names the file {}, which lies outside the checkpoint; it was refused.": "{0} 列出的文件 {1} 在检查点之外，已拒绝。",
    "{} holds a {} where a dictionary belongs; copy the checkpoint again.": "{0} 中本应是字典处是 {1}；请重新复制检查点。",
    "{}: {} is no archive of torch.save; copy it again.": "{0}：{1} 不是 torch.save 的归档；请重新复制。",
    "{}: {} was refused and not run: {}.": "{0}：{1} 已拒绝，没有运行：{2}。",
    "{} is damaged ({}); copy it again.": "{0} 已损坏（{1}）；请重新复制。",
    # documents, archives, JSON records
    "{} cannot be read to its end ({}); fetch or pack it again.": "{0} 无法读到末尾（{1}）；请重新获取或打包。",
    " behind byte {}": "（第 {0} 字节之后）",
    "{} cannot be read ({}); fetch it again.": "{0} 无法读取（{1}）；请重新获取。",
    "it takes I/N, part I of N, with I from 1 to N and N up to {}: write 1/2, for example.": (
        "应为 I/N，即 N 份中的第 I 份，I 从 1 到 N，N 最大 {0}：请写例如 1/2。"
    ),
    "{}: Parquet files need pyarrow: pip install 'megatron-patch[parquet]'.": (
        "{0}：读取 Parquet 文件需要 pyarrow：pip install 'megatron-patch[parquet]'。"
    ),
    "{} has no column {}; it has {}: name one by --json-key.": "{0} 没有列 {1}；它有 {2}：请用 --json-key 指定其中之一。",
    "it is shorter than when the interrupted run read it": "它比上次中断的运行读取时短",
    "{}; the rest of the list is lost": "{0}；列表余下的部分丢失",
    "it is empty": "它是空的",
    "it is not UTF-8": "它不是 UTF-8",
    "it is no JSON: {}": "它不是 JSON：{0}",
    "it is a {}, not an object": "它是 {0}，不是对象",
    "its {} is {}, not a text": "它的 {0} 是 {1}，不是文本",
    "it lacks the key {}": "它缺少键 {0}",
    "too much memory": "内存过多",
    "a frame of it wants a window of more than {} MiB, as zstd --long=28 makes it": (
        "其中一帧需要超过 {0} MiB 的窗口，zstd --long=28 会这样生成"
    ),
    "the Zstandard file is damaged: {}": "Zstandard 文件已损坏：{0}",
    "the Zstandard file ends within a frame": "Zstandard 文件在一帧中间结束",
    "{} holds no data files; put {} files there.": "{0} 中没有数据文件；请放入 {1} 文件。",
    "{} holds {} and {}, which look like one file twice, so that each of its documents would be read twice: move one of them to another "
    "folder, or name the files that are to be read one by one.": (
        "{0} 中的 {1} 与 {2} 看起来是同一个文件的两份，其中每个文档会被读取两次：请把其中一份移到别的文件夹，或逐个写出要读取的文件。"
    ),
    "{}: {} read; not read: {}{}.": "{0}：读取 {1}；未读取：{2}{3}。",
    " and {} more": " 等，另有 {0} 个",
    "{} does not exist; give a data file, or a folder of {} files.": "{0} 不存在；请给出数据文件，或存放 {1} 文件的文件夹。",
    "{} has no suffix that is read, and does not begin as JSON does; name it {} after its form.": (
        "{0} 的后缀不受支持，内容开头也不是 JSON；请按其格式改名为 {1}。"
    ),
    "it is longer than the {} MB that --max-document-mb allows": "它超过 --max-document-mb 允许的 {0} MB",
    "it holds half of a surrogate pair, which is no character": "它含有半个代理对，不是字符",
    # indexed data
    "there is no {}; give the path of a .bin/.idx pair without its ending.": "没有 {0}；请给出一对 .bin/.idx 文件不带后缀的路径。",
    "{} is of an older format (lazy or cached); prepare the data again, as mmap.": "{0} 是旧格式（lazy 或 cached）；请重新制作为 mmap。",
    "{} is no Megatron index (it begins with {}); prepare the data again.": "{0} 不是 Megatron 索引（开头是 {1}）；请重新制作数据。",
    "{} has version {} and type code {}; read are version 1, codes {}.": "{0} 的版本是 {1}，类型码 {2}；这里读取版本 1，类型码 {3}。",
    "{} has {} bytes, its header promises {}; copy it again, it was cut short or mixed up.": (
        "{0} 有 {1} 字节，文件头说有 {2}；它被截断或弄混了，请重新复制。"
    ),
    "sequence {} has length {}": "序列 {0} 的长度是 {1}",
    "sequence {} is said to begin at byte {}": "序列 {0} 据称从第 {1} 字节开始",
    "{}, not where the one before it ends": "{0}，不是前一个的末尾",
    "the beginnings of documents do not rise from 0 to {}": "文档的起点没有从 0 递增到 {0}",
    "the last document ends with sequence {} of {}": "最后一个文档到序列 {0} 结束，共 {1} 个序列",
    "{} is damaged: {}; copy the pair again, or prepare the data again.": "{0} 已损坏：{1}；请重新复制这对文件，或重新制作数据。",
    "{}.bin has {} bytes, {} than the {} bytes ({} tokens) of its .idx; copy the pair again, or prepare the data again.": (
        "{0}.bin 有 {1} 字节，与 .idx 的 {3} 字节（{4} 个 token）不符（{2}）；请重新复制这对文件，或重新制作数据。"
    ),
    "{}.idx lists no tokens; prepare the data again from an input that holds text.": "{0}.idx 中没有 token；请用含有文本的输入重新制作数据。",
    "{}.bin: document {}, token {} has id {}, outside the vocabulary of {}; the data was made with another tokenizer: prepare it "
    "again with this model's.": (
        "{0}.bin：第 {1} 个文档的第 {2} 个 token 编号是 {3}，超出大小为 {4} 的词表；数据是用别的分词器制作的：请用本模型的分词器重新制作。"
    ),
    # sums, and files that are not whole
    "tensor {}": "张量 {0}",
    "{} is damaged ({} in {}); copy it again.": "{0} 已损坏（{2} 中：{1}）；请重新复制。",
    "{} has {} bytes, and {} were written to it; the disk has lost the others.": "{0} 有 {1} 字节，而写入了 {2} 字节；其余的被磁盘丢失了。",
    "{} is damaged: the bytes of {} have the CRC-32 {}, and were written with {}; copy the file again.": (
        "{0} 已损坏：{1} 的字节 CRC-32 是 {2}，写入时是 {3}；请重新复制该文件。"
    ),
    "{} ends inside {}; the file is truncated: copy it again.": "{0} 在 {1} 中间结束；文件被截断：请重新复制。",
}
