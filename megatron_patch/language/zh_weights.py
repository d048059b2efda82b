"""Chinese of `weights/`: what is wrong with a checkpoint's tensors, and what was assumed about them."""

from __future__ import annotations

SENTENCES = {
    # hugging_face
    "config.json asks for them: copy the folder again": "config.json 需要它们：请重新复制该文件夹",
    "{} holds more than tensors by name; it is no {} of a Hugging Face model.": (
        "{0} 中不只有按名称存放的张量；它不是 Hugging Face 模型的 {1}。"
    ),
    "{} holds a quantized model ({} is there), from which no training goes on: take the folder that it was made from, with float16 or "
    "bfloat16 weights.": "{0} 中是量化的模型（其中有 {1}），不能继续训练：请用量化前的文件夹，权重为 float16 或 bfloat16。",
    "it is the output layer, which must be a matrix of its own: save the whole LlamaForCausalLM, untied": (
        "这是输出层，必须是单独的矩阵：请保存完整的、不共享权重的 LlamaForCausalLM"
    ),
    "{} lacks {}; {}.": "{0} 缺少 {1}；{2}。",
    "{} holds tensors that a LLaMA does not have: {}; they would be lost.": "{0} 中有 LLaMA 没有的张量：{1}；转换会丢失它们。",
    "{} holds {}, and so does {}; copy the folder again.": "{0} 中有 {1}，{2} 中也有；请重新复制该文件夹。",
    "{} lacks {}, which {} places there; copy the folder again.": "{0} 缺少 {1}，而 {2} 说它在其中；请重新复制该文件夹。",
    "their names there begin with {}: save the model again without that wrapper": "它们在其中的名称以 {0} 开头：请去掉这层包装后重新保存模型",
    "their names there lack {}: save the whole LlamaForCausalLM": "它们在其中的名称缺少 {0}：请保存完整的 LlamaForCausalLM",
    "{}: tensor {} has shape {}{}, and config.json makes it {}.": "{0}：张量 {1} 的形状是 {2}{3}，按 config.json 应为 {4}。",
    " (as many elements in another order)": "（元素个数相同，排列不同）",
    "{} holds more than 16-bit and 32-bit floating-point tensors by name ({} is {}); it is no {} of a Hugging Face model: save the "
    "model with save_pretrained(FOLDER).": (
        "{0} 中不只有按名称存放的 16 位和 32 位浮点张量（{1} 是 {2}）；它不是 Hugging Face 模型的 {3}：请用 save_pretrained(文件夹) 保存模型。"
    ),
    # hugging_face_buffers
    "Biases that are zero everywhere were left out, since a LLaMA has none: {}.": "全为零的 bias 已略去，因为 LLaMA 没有 bias：{0}。",
    "No frequencies of a rotary embedding stand in {}; config.json's rope_theta was taken.": (
        "{0} 中的值不是旋转位置编码的频率；已采用 config.json 的 rope_theta。"
    ),
    "{} with linear scaling by {}": "{0}，linear 缩放系数 {1}",
    "{} and a head size of {}": "{0}，注意力头的大小为 {1}",
    "tensor {} holds the frequencies of {}, and config.json says rope_theta {}: config.json does not belong to these weights, or its "
    "rope_theta or rope_scaling must be put right.": (
        "张量 {0} 中是 {1} 的频率，而 config.json 中 rope_theta 是 {2}：config.json 不属于这些权重，或其 rope_theta 或 rope_scaling 需要改正。"
    ),
    # layout_2023
    "convert the Hugging Face folder that it was made from again, with this project's model_convertor.sh and mg2hf false": (
        "请用本项目的 model_convertor.sh（mg2hf false）重新转换它的来源 Hugging Face 文件夹"
    ),
    "--gqa-layout {} changes nothing: {} is MHA, or has one KV head a rank, which leaves one order.": (
        "--gqa-layout {0} 不起作用：{1} 是 MHA，或每个 rank 只有一个 KV 头，顺序只有一种。"
    ),
    "with query and key_value apart": "其 query 与 key_value 分开存放",
    "a model_optim_rng.pt, which converters write since 2024-03-05": "是转换器自 2024-03-05 起写的 model_optim_rng.pt",
    "every rank holds the whole of [gate; up]": "每个 rank 都有完整的 [gate; up]",
    "each rank holds a piece of [gate; up] instead of its rows of both": "每个 rank 只有 [gate; up] 的一段，而不是两者各自的行",
    "{} cannot be right: the original's converter of 2023-10-10 to 18 wrote it for TP {}, where it split the feed-forward weights "
    "wrongly ({}), and no model can run with them; {}.": (
        "{0} 有误：它由原项目 2023-10-10 至 18 的转换器按 TP {1} 写出，当时前馈层权重切分错误（{2}），任何模型都无法使用；{3}。"
    ),
    "{} has {} tensor-parallel ranks, which cannot share {} KV heads; put the model's own config.json beside it.": (
        "{0} 有 {1} 个张量并行 rank，无法分配 {2} 个 KV 头；请把模型自己的 config.json 放在旁边。"
    ),
    "{}: --gqa-layout all-q-first is for what the original converted from 2023-10-18 to 2023-11-09, and this checkpoint, {}, has its "
    "rows per KV head; leave the flag out.": (
        "{0}：--gqa-layout all-q-first 用于原项目 2023-10-18 至 2023-11-09 转换的检查点，而这个检查点{1}，各行按 KV 头排列；请去掉该标志。"
    ),
    "QKV rows of {} are read per KV head, as the original converted from 2023-11-10 on; nothing in it tells. Was it converted from "
    "2023-10-18 to 2023-11-09? Then add --gqa-layout all-q-first.": (
        "{0} 的 QKV 各行按 KV 头读取，与原项目 2023-11-10 起的转换一致；文件本身无从判断。如果它是 2023-10-18 至 2023-11-09 转换的，"
        "请加 --gqa-layout all-q-first。"
    ),
    "QKV rows of {} are read as all of a rank's q, then k and v of each KV head.": (
        "{0} 的 QKV 各行按“先是该 rank 全部的 q，再是每个 KV 头的 k 和 v”读取。"
    ),
    "which a training run saved (input_norm)": "由训练保存（input_norm）",
    "in Transformer Engine's names": "使用 Transformer Engine 的名称",
    "in megatron-core's names": "使用 megatron-core 的名称",
    # megatron_2023
    "{}: {} has shape {}, and config.json or the recorded arguments make it {}.": (
        "{0}：{1} 的形状是 {2}，按 config.json 或所记录的参数应为 {3}。"
    ),
    "No config.json in {}: assumed are max_position_embeddings {} and rms_norm_eps {}{}, rope_theta {}; put the model's own config.json "
    "there to be sure.": (
        "{0} 中没有 config.json：按 max_position_embeddings {1}、rms_norm_eps {2}{3}、rope_theta {4} 处理；要确保无误，请放入模型自己的 config.json。"
    ),
    " ({}: write that as MN if that is the model)": "（{0}：若是该模型，请写作 MN）",
    "{} records {} attention heads, which do not divide its hidden size {}.": "{0} 记录了 {1} 个注意力头，不能整除其 hidden size {2}。",
    "{} records {} attention heads, and its keys and values have {} rows, which no number of KV heads makes; put the model's own "
    "config.json beside it.": (
        "{0} 记录了 {1} 个注意力头，而其 key 和 value 有 {2} 行，与任何 KV 头数都不符；请把模型自己的 config.json 放在旁边。"
    ),
    "{} records {} KV heads (num_query_groups), and its tensors have {}.": "{0} 记录了 {1} 个 KV 头（num_query_groups），而其张量有 {2} 个。",
    "{} says {} layers, and {} has {}.": "{0} 写的是 {1} 层，而 {2} 有 {3} 层。",
    "{} does not record {}; put the model's config.json into {}.": "{0} 没有记录 {1}；请把模型的 config.json 放入 {2}。",
    # meta
    "Meta's files do not say how many positions the model was trained with: {} was taken ({}). To say otherwise, put a config.json "
    "beside params.json, or name the size where the command takes one (MN llama2-7b, MODEL_SIZE 7B).": (
        "Meta 的文件没有写模型训练时的位置数：已取 {0}（{1}）。如需更改，请在 params.json 旁放入 config.json；"
        "命令若有规模参数（MN llama2-7b、MODEL_SIZE 7B），也可写明规模。"
    ),
    "LLaMA-1's, the smaller one, since nothing tells them apart": "LLaMA-1 的值，取较小者，因为无从区分",
    "{} is missing beside Meta's consolidated files; copy the folder again.": "Meta 的 consolidated 文件旁缺少 {0}；请重新复制该文件夹。",
    "{} has {}, which a LLaMA or LLaMA-2 does not: this model would be misread.": "{0} 中有 {1}，LLaMA 和 LLaMA-2 没有：会读错这个模型。",
    "{} has use_scaled_rope: llama3's rotary scaling is not supported; supported are LLaMA and LLaMA-2.": (
        "{0} 中有 use_scaled_rope：不支持 llama3 的旋转位置缩放；支持 LLaMA 和 LLaMA-2。"
    ),
    "{}: {} is {}; it must be a whole number of at least 1.": "{0}：{1} 是 {2}；必须是不小于 1 的整数。",
    "{}: {} is {}; it must be a number above 0.": "{0}：{1} 是 {2}；必须是大于 0 的数。",
    "{}: {} {} missing; copy the folder again.": "{0}：缺少 {1}；请重新复制该文件夹。{2:.0}",
    "{} holds more than tensors by name; it is none of Meta's files.": "{0} 中不只有按名称存放的张量；它不是 Meta 的文件。",
    "{}: dim {} in {} n_heads makes no even head size.": "{0}：dim {1} 除以 n_heads {2} 得不到偶数的注意力头大小。",
    "{} has {} consolidated files, each with {} of the {} rows of attention.wq.weight: there must be {}; copy the folder again.": (
        "{0} 中有 {1} 个 consolidated 文件，各有 attention.wq.weight 的 {3} 行中的 {2} 行：应有 {4} 个文件；请重新复制该文件夹。"
    ),
    "{}: vocab_size is {}, and output.weight has {} rows over all files.": "{0}：vocab_size 是 {1}，而所有文件的 output.weight 共 {2} 行。",
    "the named size": "所写规模的值",
    "rope_theta is above 10000, as in Code Llama": "rope_theta 大于 10000，与 Code Llama 相同",
    "n_kv_heads is there, as in LLaMA-2 70B": "有 n_kv_heads，与 LLaMA-2 70B 相同",
    "rope.freqs is there once, as in LLaMA-2": "只有一个 rope.freqs，与 LLaMA-2 相同",
    "every layer has rope.freqs, as in LLaMA-1": "每层都有 rope.freqs，与 LLaMA-1 相同",
    "{}: a consolidated file lacks {}; copy the folder again.": "{0}：有一个 consolidated 文件缺少 {1}；请重新复制该文件夹。",
    "{}: {} has another shape or dtype in one consolidated file than in another; copy them again.": (
        "{0}：{1} 在各 consolidated 文件中的形状或 dtype 不一致；请重新复制。"
    ),
    "{}: a file's {} rows of {} are no whole heads of {}.": "{0}：一个文件中 {2} 的 {1} 行，不是大小为 {3} 的整数个注意力头。",
    "{}: {} is no 16-bit or 32-bit floating-point tensor; it is none of Meta's files.": (
        "{0}：{1} 不是 16 位或 32 位浮点张量；它不是 Meta 的文件。"
    ),
    "{} lacks {}; {} asks for them: copy the folder again.": "{0} 缺少 {1}；{2} 需要它们：请重新复制该文件夹。",
    "{}: {} has shape {}, and it must be {}.": "{0}：{1} 的形状是 {2}，应为 {3}。",
    # native
    "{}: {} has shape {}, and the configuration makes it {}.": "{0}：{1} 的形状是 {2}，按配置应为 {3}。",
    "{} lacks the weights {}; it is no checkpoint of a LLaMA.": "{0} 缺少权重 {1}；它不是 LLaMA 的检查点。",
    "{}: {} has shape {}; a LLaMA's has {} axes.": "{0}：{1} 的形状是 {2}；LLaMA 的应有 {3} 维。",
    "{}: {} has {} layers, and the configuration {}.": "{0}：{1} 有 {2} 层，而配置是 {3} 层。",
    "{}: weights are {}; allowed are {}.": "{0}：权重是 {1}；可用的是 {2}。",
    "{}/.metadata does not say where {} lies; the checkpoint is damaged.": "{0}/.metadata 没有写 {1} 的位置；检查点已损坏。",
    "{}: {} is {} there, and {} in .metadata; it is damaged.": "{0}：{1} 在其中是 {2}，在 .metadata 中是 {3}；文件已损坏。",
    "{}: the chunks of {} leave a gap or overlap; the checkpoint is damaged.": "{0}：{1} 的分块有缺口或重叠；检查点已损坏。",
    # ranks_2023, rules_2023
    "{} holds no layers of a LLaMA; give another checkpoint.": "{0} 中没有 LLaMA 的层；请换一个检查点。",
    "{} is one of a run with interleaved pipeline stages (model0, model1, …), which is not read; save it again from the original "
    "without --num-layers-per-virtual-pipeline-stage.": (
        "{0} 来自使用交错流水线（model0、model1……）的运行，这里不读取；请在原项目中去掉 --num-layers-per-virtual-pipeline-stage 重新保存。"
    ),
    "{} is no checkpoint of a language model of 2023: 'model' is not in it.": "{0} 不是 2023 年格式的语言模型检查点：其中没有 'model'。",
    "{} is no checkpoint of a language model of 2023: there are no tensors by name in language_model's 'encoder'.": (
        "{0} 不是 2023 年格式的语言模型检查点：language_model 的 'encoder' 中没有按名称存放的张量。"
    ),
    "{} holds tensors that a LLaMA does not have: {}.": "{0} 中有 LLaMA 没有的张量：{1}。",
    "a tensor of shape {}": "形状为 {0} 的张量",
    "{}: {} is {}; a floating-point tensor of {} axes belongs there: copy it again.": (
        "{0}：{1} 是{2}；那里应是 {3} 维的浮点张量：请重新复制。"
    ),
    "{} lacks {}; the checkpoint is not whole, or is no LLaMA's.": "{0} 缺少 {1}；检查点不完整，或不是 LLaMA。",
    "{}: {} is {} {}, and {} {} on the first rank; these are no shards of one checkpoint.": (
        "{0}：{1} 是 {2} {3}，而第一个 rank 上是 {4} {5}；它们不是同一个检查点的分片。"
    ),
    "{} was written with {} {}, and files for {} are there; copy it again.": "{0} 写出时 {1} 是 {2}，而其中有 {3} 份文件；请重新复制。",
    "{} lacks layers.{}.{}; the checkpoint is not whole, or is no LLaMA's.": "{0} 缺少 layers.{1}.{2}；检查点不完整，或不是 LLaMA。",
    "{} has the layers {}; they must count from 0 without a gap, as on other ranks.": (
        "{0} 中有第 {1} 层；层号必须从 0 起连续，与其他 rank 一致。"
    ),
    "{}: {} is not zero, and a LLaMA's norm has no bias; it would be lost.": "{0}：{1} 不为零，而 LLaMA 的 norm 没有 bias；转换会丢失它。",
    "A rank's keys and values have {} rows, no multiple of {}, which one KV head takes.": (
        "一个 rank 的 key 和 value 有 {0} 行，不是一个 KV 头所占的 {1} 行的倍数。"
    ),
    "query has {} rows on a rank with {} KV heads; {} belong there.": "query 在有 {1} 个 KV 头的 rank 上有 {0} 行；应有 {2} 行。",
    # source, table
    "{} rows of vocabulary padding beyond {} are left out.": "已略去词表 {1} 行之后的 {0} 行填充。",
    "{}: {} has shape {}, of which {} is no share.": "{0}：{1} 的形状是 {2}，{3} 不是它的分片。",
    "{}: {} is {}, and the others are {}; give --dtype to make them one.": "{0}：{1} 是 {2}，其余是 {3}；请用 --dtype 统一。",
    "{} (layer {})": "{0}（第 {1} 层）",
}
