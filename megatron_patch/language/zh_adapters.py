"""Chinese of what is said about adapters (LoRA): their files, their bases, merging and inspecting them."""

from __future__ import annotations

SENTENCES = {
    # formats
    "{} holds more than tensors by name; copy the right file there.": "{0} 中不只是按名称存放的张量；请把正确的文件复制到那里。",
    # folders
    "there is no such folder: write that of the model that the adapter was made over.": "没有这个文件夹：请写适配器所基于的模型的文件夹。",
    "{} names no base: write --base and the folder of the model that it was made over.": (
        "{0} 没有写明基础模型：请写 --base 和它所基于的模型的文件夹。"
    ),
    "{} names the base {}, and there is no such folder here: write --base and the folder of that model.": (
        "{0} 写明的基础模型是 {1}，这里没有这个文件夹：请写 --base 和该模型的文件夹。"
    ),
    "the base {} is an adapter itself: write --base and the folder of a whole model.": (
        "基础模型 {0} 本身是适配器：请写 --base 和完整模型的文件夹。"
    ),
    # arguments, conversion
    "the run that trained the adapter has read the weights under it as {}: remove the flag.": (
        "训练该适配器时，其下的权重按 {0} 读取：请去掉该标志。"
    ),
    "it is for mg2hf = true: remove the flag, or write mg2hf = true.": "它用于 mg2hf = true：请去掉该标志，或写 mg2hf = true。",
    "it compares whole models, and --adapter-only writes none: remove the flag.": (
        "它比较完整的模型，而 --adapter-only 不写出完整模型：请去掉该标志。"
    ),
    "the base is in it, and must stay: write another folder.": "基础模型就在其中，必须保留：请写别的文件夹。",
    "it goes with an adapter, and {} holds none: remove the flag.": "它用于适配器，而 {0} 中没有适配器：请去掉该标志。",
    "--verify-logits compares whole models, and {} holds an adapter: leave it out.": (
        "--verify-logits 比较完整的模型，而 {0} 中是适配器：请去掉该标志。"
    ),
    "--adapter-only goes with an adapter, and {} holds none: leave it out.": (
        "--adapter-only 用于适配器，而 {0} 中没有适配器：请去掉该标志。"
    ),
    'Next: peft.PeftModel.from_pretrained(base_model, "{}")': '下一步：peft.PeftModel.from_pretrained(base_model, "{0}")',
    # weights
    "The adapter of {} modules {} was merged into {}{}.": "{0} 个模块的适配器 {1} 已合并到 {2}{3}。",
    "(rank {}, alpha {})": "（秩 {0}，alpha {1}）",
    ", and {} taken from it whole": "，其中 {0} 整个取自适配器",
    "{} holds {} both whole and as an adapter; save the adapter again.": (
        "{0} 中的 {1} 既有整个权重又有适配器；请重新保存适配器。"
    ),
    "{} does not fit {}: with it the vocabulary has other numbers of rows ({}, and config.json has {}); name the base that the "
    "adapter was made over with --base.": (
        "{0} 与 {1} 不符：词表行数不一致（{2}，而 config.json 是 {3}）；请用 --base 写明适配器所基于的模型。"
    ),
    "{} changes what the model in {} does not have: {}; it was made over another model: name that with --base.": (
        "{0} 修改了 {1} 中的模型所没有的部分：{2}；它基于另一个模型：请用 --base 写明。"
    ),
    "{}: the adapter's {} has shape {}, and the model in {} has {}; name the base that the adapter was made over with --base.": (
        "{0}：适配器的 {1} 形状是 {2}，而 {3} 中的模型是 {4}；请用 --base 写明适配器所基于的模型。"
    ),
    # training over 4 bits
    "--qlora: a weight of this model has {} numbers on each GPU, no multiple of {}; remove the flag.": (
        "--qlora：该模型有一个权重在每张 GPU 上有 {0} 个数，不是 {1} 的倍数；请去掉该标志。"
    ),
    "  frozen linear layers: in 4 bits, NF4 with double quantization": "  冻结的线性层：以 4 位保存（NF4，双重量化）",
    # inspection
    "adapter {}: PEFT's LoRA, rank {}, alpha {}, scale {}": "适配器 {0}：PEFT 的 LoRA，秩 {1}，alpha {2}，缩放 {3}",
    "made over: not recorded; --base names it to model_convertor.sh": "基础模型：没有记录；转换时用 model_convertor.sh 的 --base 写明",
    "made over: {}": "基础模型：{0}",
    "made over: {}, no folder here; --base names it to model_convertor.sh": (
        "基础模型：{0}，这里没有这个文件夹；转换时用 model_convertor.sh 的 --base 写明"
    ),
    "{} modules: {}": "{0} 个模块：{1}",
    "kept whole: {}": "整个保存：{0}",
    "{} numbers, {} MB": "{0} 个数，{1} MB",
}
