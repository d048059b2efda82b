"""Chinese of `checkpoint/` and of what `formats/` says about damaged archives and metadata."""

from __future__ import annotations

SENTENCES = {
    # checked_load
    "object {}": "对象 {0}",
    "{}: object {} is no list of one dictionary; copy the checkpoint again.": "{0}：对象 {1} 不是只含一个字典的列表；请重新复制检查点。",
    "{}: object {} has {} bytes; more than {} are not read.": "{0}：对象 {1} 有 {2} 字节；超过 {3} 字节的不读取。",
    "{} cannot be loaded: {}": "{0} 无法加载：{1}",
    "{}: {} is a {} there; it is no checkpoint of this model.": "{0}：{1} 在其中是 {2}；它不是这个模型的检查点。",
    "{}: {} has shape {} there, and {} in this run.": "{0}：{1} 在其中的形状是 {2}，本次运行是 {3}。",
    "{}: common.pt has a {} as {}, where tensors belong; copy it again.": "{0}：common.pt 中 {2} 是 {1}，那里应是张量；请重新复制。",
    "{}: object {} is no list of {}; copy the checkpoint again.": "{0}：对象 {1} 不是长度为 {2} 的列表；请重新复制检查点。",
    # housekeeping
    "warning: {}": "警告：{0}",
    "{} training checkpoints cannot be kept; give their number, or 0 to keep all.": "无法保留 {0} 个训练检查点；请给出个数，或写 0 全部保留。",
    "there is no folder {} any more": "文件夹 {0} 已不存在",
    "of {} none could be copied to {} ({}). The checkpoint is whole; copy the tokenizer there before you convert it.": (
        "{0} 都未能复制到 {1}（{2}）。检查点是完整的；转换之前请把分词器复制过去。"
    ),
    "{} is left over and could not be removed ({}); remove it yourself.": "{0} 是残留的，未能删除（{1}）；请自行删除。",
    "{} cannot be looked through for what is left over ({}); the next save looks again.": (
        "无法在 {0} 中查找残留的文件夹（{1}）；下一次保存时会再查找。"
    ),
    "{} is complete, and older checkpoints beside it could not be looked after ({}).": (
        "{0} 已完整保存，但未能整理旁边较早的检查点（{1}）。"
    ),
    # background, staging, writer, host_memory
    "{} is complete; then {}.": "{0} 已完整保存；随后：{1}。",
    "{} has {} GB of memory free, and writing a checkpoint beside the training takes {} GB: checkpoints are written tensor by tensor, "
    "while the training waits.": (
        "{0} 有 {1} GB 可用内存，而与训练同时写检查点需要 {2} GB：检查点将逐个张量地写，训练在此期间等待。"
    ),
    "{}, so checkpoints are written while the training waits.": "{0}，因此写检查点时训练等待。",
    "the driver pins {} of {} bytes ({})": "驱动只锁定了 {1} 字节中的 {0} 字节（{2}）",
    "the process that writes checkpoints has ended with status {}": "写检查点的进程已结束，状态为 {0}",
    # initial_weights
    "{}: {} has {} rows of tokens, and the model {}; write {} as EXTRA_VOCAB_SIZE, which keeps them.": (
        "{0}：{1} 有 {2} 行 token，而模型有 {3} 行；EXTRA_VOCAB_SIZE 请写 {4}，以保留它们。"
    ),
    "{}: {} has {} rows, and vocabulary with EXTRA_VOCAB_SIZE makes {}; give the EXTRA_VOCAB_SIZE that the checkpoint was made with.": (
        "{0}：{1} 有 {2} 行，而词表加 EXTRA_VOCAB_SIZE 是 {3} 行；请写检查点生成时的 EXTRA_VOCAB_SIZE。"
    ),
    # restore
    "{} does not hold such a run's state ({}); go on from an earlier checkpoint.": (
        "{0} 中不是这种运行的状态（{1}）；请从更早的检查点继续。"
    ),
    "progress holds {}": "progress 中是 {0}",
    "progress is {}": "progress 是 {0}",
    "scheduler.num_steps is {}": "scheduler.num_steps 是 {0}",
    "scheduler.{} is {}, and {} in this run": "scheduler.{0} 是 {1}，本次运行是 {2}",
    "param_groups: none has {}": "param_groups：没有一个含 {0}",
    "param_groups count no steps": "param_groups 没有记录步数",
    "{} is missing": "缺少 {0}",
    "{} is no list of {}": "{0} 不是长度为 {1} 的列表",
    "{} is no {} of shape {}": "{0} 不是形状为 {2} 的 {1}",
    # archive_calls, archive_values, unpickling
    "it calls {}, which no checkpoint needs": "它调用 {0}，检查点不需要",
    "it calls {} as no checkpoint does": "它调用 {0} 的方式不是检查点会有的",
    "it takes the beginning of a group for a value": "它把一组的开头当作值",
    "it has a {} where a {} belongs": "本应是 {1} 处是 {0}",
    "it has a key without a value": "它有一个没有值的键",
    "it is no whole pickle ({})": "它不是完整的 pickle（{0}）",
    "it holds a number of more than 64 bits": "它含有超过 64 位的数",
    "it sets the state of one object twice": "它两次设置同一对象的状态",
    "it names {}, which no checkpoint needs; it was refused and not run": "它引用 {0}，检查点不需要；已拒绝，没有运行",
    "it ends a group that was not begun": "它结束了一个没有开始的组",
    "it leaves more than one value": "它留下不止一个值",
    "it has a {} as a key": "它以 {0} 作为键",
    "it has the same key twice": "它有重复的键",
    "it has more steps, or is nested deeper, than any checkpoint's": "它的步骤数或嵌套深度超过任何检查点",
    "it takes the step {}, which no checkpoint needs": "它使用步骤 {0}，检查点不需要",
    # rebuilt_metadata
    "{} is stored through a transform, a compression say, which is not read here: save the checkpoint without": (
        "{0} 经过变换（如压缩）存储，这里不读取：请不用变换保存检查点"
    ),
    "has it twice": "有两次",
    "does not say where it lies": "没有写它的位置",
    "of {}, it {}": "对于 {0}，它{1}",
    "the chunks of {} leave a gap or overlap": "{0} 的分块有缺口或重叠",
    "properties are no TensorProperties": "properties 不是 TensorProperties",
    "a tensor has the dtype {}, or another layout than strided": "有张量的 dtype 是 {0}，或布局不是 strided",
    "a {} has the fields {}; it takes {}": "{0} 的字段是 {1}；应为 {2}",
    "{} is a {} where a {} belongs": "{0} 是 {1}，应为 {2}",
    "{} is longer than {} characters, or holds some that cannot be shown": "{0} 超过 {1} 个字符，或含有无法显示的字符",
    "it has {} for an offset or a size": "它的偏移或大小是 {0}",
    "it has no shape of up to {} axes where one belongs": "本应是不超过 {0} 维的形状，却不是",
    "it says twice where {} lies": "它两次写了 {0} 的位置",
    "{} is truncated: tensor or object {} ends at byte {}, the file at {}; copy it again.": (
        "{0} 被截断：张量或对象 {1} 到第 {2} 字节，而文件只到第 {3} 字节；请重新复制。"
    ),
    "a chunk of {} has not the {} axes of the tensor": "{0} 的一个分块没有该张量的 {1} 维",
    "a chunk of {}, to {}, leads out of its size {}": "{0} 的一个分块到 {1}，超出其大小 {2}",
    # torch_archive, archive_zip
    "its numbers are not {}-endian": "它的数不是 {0}-endian",
    "it holds something else than a tensor": "它的内容不是张量",
    "it gives a tensor's place, shape or strides by other values than numbers from 0 on": "张量的位置、形状或步长不是从 0 起的数",
    "it makes a tensor {} of a storage of {} elements": "它用 {1} 个元素的存储构成张量 {0}",
    "it names a storage otherwise than torch does": "它引用存储的方式与 torch 不同",
    "it names a storage of a kind that no checkpoint needs": "它引用的存储类型不是检查点需要的",
    "storage {} has {} bytes for {} elements of {}": "存储 {0} 有 {1} 字节，而应有 {2} 个 {3} 字节的元素",
    "its records are not those of one folder": "它的记录不在同一个文件夹下",
    "it has a record twice": "它有重复的记录",
    "its directory or description is said to have {} bytes": "它的目录或描述据称有 {0} 字节",
    "it has something before, behind or instead of its records": "它的记录之前、之后有别的内容，或没有记录",
    "it says in two ways where its directory is": "它对目录的位置有两种说法",
    "its record {} is compressed, as torch's are not": "它的记录 {0} 经过压缩，而 torch 不压缩",
    "its record {} overlaps another": "它的记录 {0} 与另一条重叠",
    "its record {} ends behind the others": "它的记录 {0} 的结尾超出范围",
    "it is nested deeper, or holds more values, than any checkpoint's": "它的嵌套深度或值的个数超过任何检查点",
    "it holds a container that is inside itself": "它含有包含自身的容器",
    # nodes with disks of their own
    "{} holds the files of {} of {} nodes, which share no disk (--local-output): {}. Copy these from the same folder of those nodes.": (
        "{0} 只有 {2} 个节点中 {1} 个的文件，这些节点没有共享磁盘（--local-output）：{3}。请从那些节点的同一文件夹复制这些文件。"
    ),
    "node {} ({}) keeps {}": "节点 {0}（{1}）保存着 {2}",
    "{} does not say which node keeps which file; copy it again.": "{0} 没有说明哪个节点保存哪个文件；请重新复制。",
    "{} is on none of the run's nodes; start it on all nodes that wrote it.": "{0} 不在该运行的任何节点上；请在写下它的所有节点上启动。",
    # progress
    "{}: {} GB, {} MB/s": "{0}：{1} GB，{2} MB/s",
    "{}: {} {}, {} a second": "{0}：{1} {2}，每秒 {3}",
    "{}: {} min so far": "{0}：已用 {1} 分钟",
    "reading": "读取",
    "saving": "保存",
    "flushing": "写入磁盘",
    "{}: {} of {} GB ({}%), {} MB/s, {} s left": "{0}：{1} / {2} GB（{3}%），{4} MB/s，剩余 {5} 秒",
    "its record {} has another CRC-32 than when it was written": "它的记录 {0} 的 CRC-32 与写入时不同",
    "its storage {} has another CRC-32 than when it was written": "它的存储 {0} 的 CRC-32 与写入时不同",
    "{} is not wanted any more and could not be removed ({}); remove it yourself.": "{0} 已不需要，未能删除（{1}）；请自行删除。",
}
