"""Chinese of LoRA: its flags, PEFT's folders, and what a run says of its adapters."""

from __future__ import annotations

SENTENCES = {
    # arguments
    "it takes names of {}, with commas between them: write q_proj,v_proj, for example.": (
        "可写 {0} 中的名称，用逗号分隔：例如写 q_proj,v_proj。"
    ),
    "the adapter of --lora-adapter has {}: write that, or remove the flag.": "--lora-adapter 的适配器是 {0}：请写它，或去掉该标志。",
    "it is for LoRA, which --lora-rank turns on: write --lora-rank 16 too, or remove the flag.": (
        "它用于 LoRA，而 LoRA 由 --lora-rank 开启：请同时写 --lora-rank 16，或去掉该标志。"
    ),
    "weights in 4 bits have no FP8 products: write bf16 as PR, or remove the flag.": (
        "4 位的权重没有 FP8 矩阵乘法：请把 PR 写为 bf16，或去掉该标志。"
    ),
    "weights in 4 bits have no FP8 products: write bf16, or remove the flag.": (
        "4 位的权重没有 FP8 矩阵乘法：请写 bf16，或去掉该标志。"
    ),
    # PEFT's folders
    "peft_type is {}; only LORA is read.": "peft_type 是 {0}；只读取 LORA。",
    "it lacks {}; copy the right file there.": "缺少 {0}；请把正确的文件复制到那里。",
    "it asks for what is not computed here: {}; only plain LoRA is read.": "它要求的计算这里没有：{0}；只读取普通的 LoRA。",
    "{} is {}; it must be a list of names": "{0} 是 {1}；它必须是名称的列表",
    "There is no {} in {}; copy it there, or save the adapter again with a newer PEFT.": (
        "{1} 中没有 {0}；请复制到那里，或用较新的 PEFT 重新保存适配器。"
    ),
    "There is no {} in {}; name the folder in which PEFT saved the adapter.": "{1} 中没有 {0}；请写 PEFT 保存适配器的文件夹。",
    "{} has a damaged header ({}); copy it again.": "{0} 的文件头已损坏（{1}）；请重新复制。",
    "{} holds {}, which is no matrix of a LoRA over linear layers; only those are read.": (
        "{0} 中有 {1}，它不是线性层 LoRA 的矩阵；只读取这种矩阵。"
    ),
    "{} holds no adapter; copy the right file there.": "{0} 中没有适配器；请把正确的文件复制到那里。",
    "{} lacks {}; copy the file again.": "{0} 缺少 {1}；请重新复制该文件。",
    "{}: the adapter of {} has rank {}, and {} says {}; copy both again.": "{0}：{1} 的适配器秩为 {2}，而 {3} 写的是 {4}；请重新复制两者。",
    # checkpoints
    "{} lacks {}; it is no checkpoint of such a LoRA run.": "{0} 缺少 {1}；它不是这样的 LoRA 训练的检查点。",
    "The run has trained its adapters over other weights than {} holds now; put these back, or name the folder that has them as "
    "PRETRAIN_CHECKPOINT_PATH.": "该运行训练适配器时所用的权重与 {0} 现有的不同；请放回原来的权重，或把有原权重的文件夹写为 PRETRAIN_CHECKPOINT_PATH。",
    "The run's frozen weights are those of {}, which cannot be read: {}": "该运行的冻结权重来自 {0}，无法读取：{1}",
    "in each of the model's layers {} must have one, and nothing else": "模型每一层的 {0} 都必须有适配器，其他不能有",
    "{} has no adapter of {}; {}.": "{0} 没有 {1} 的适配器；{2}。",
    "{} has an adapter of {}; {}.": "{0} 有 {1} 的适配器；{2}。",
    "{}: the adapter of {} is over a weight {}, and the model's is {}.": "{0}：{1} 的适配器对应的权重是 {2}，而模型的是 {3}。",
    "{}/{} says a scale of {}, and the run's is {}.": "{0}/{1} 给出的缩放是 {2}，而本次运行是 {3}。",
    "{} holds a whole {}; beside adapters only embedding and output layer are trained here: merge it into its base with "
    "model_convertor.sh, and begin a new one over that.": (
        "{0} 中有完整的 {1}；除适配器外这里只训练词嵌入和输出层：请用 model_convertor.sh 把它合并到基础模型，再在其上开始新的适配器。"
    ),
    "{} has matrices for {}; adapters are trained over {}: merge it into its base with model_convertor.sh, and begin with the "
    "result.": "{0} 中有 {1} 的矩阵；适配器只在 {2} 上训练：请用 model_convertor.sh 把它合并到基础模型，再从结果开始。",
    "{} holds a whole {}, which this run does not train: write --lora-vocabulary true.": (
        "{0} 中有完整的 {1}，而本次运行不训练它：请写 --lora-vocabulary true。"
    ),
    "{}: {} is {}, and the model's is {}; EXTRA_VOCAB_SIZE adds rows.": "{0}：{1} 是 {2}，而模型的是 {3}；EXTRA_VOCAB_SIZE 会增加行。",
    "{} holds a LoRA run's adapters and not the weights under them, and no folder {}, which a run on disks of its nodes' own does "
    "not write (--local-output): go on from it without that flag, and the next checkpoint has one.": (
        "{0} 只有 LoRA 训练的适配器，没有其下的权重，也没有文件夹 {1}（使用各节点自己磁盘的运行不写它，--local-output）："
        "请去掉该标志从它继续训练，下一个检查点就会有。"
    ),
    "{} holds a LoRA run's adapters and not the weights under them: merge the two first, with model_convertor.sh; to train on with "
    "the adapters, name these weights, and add --lora-adapter {}.": (
        "{0} 只有 LoRA 训练的适配器，没有其下的权重：请先用 model_convertor.sh 合并两者；要接着训练适配器，请写那些权重，"
        "并加上 --lora-adapter {1}。"
    ),
    "{} is a LoRA run's, and the model under its adapter, {}, is not there or no whole model. Put it back, or let "
    "model_convertor.sh merge both with --base and write here what it makes.": (
        "{0} 是 LoRA 训练的，其适配器下的模型 {1} 不在那里，或不是完整的模型。请放回，或用 model_convertor.sh 加 --base 合并两者，并在这里写合并的结果。"
    ),
    # start
    "  starting from the adapter {}": "  从适配器 {0} 开始",
    "  frozen weights: those of {}": "  冻结的权重来自 {0}",
    "  LoRA: {} trainable parameters (rank {}, alpha {}, dropout {}, on {}); {} frozen ones": (
        "  LoRA：可训练参数 {0} 个（秩 {1}，alpha {2}，dropout {3}，位于 {4}）；冻结参数 {5} 个"
    ),
}
