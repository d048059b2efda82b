"""Chinese of `folders/`, `data_paths.py` and `llama/`."""

from __future__ import annotations

SENTENCES = {
    # data_paths
    "every weight of a blend must be above 0, and no larger than a double holds.": "混合数据的每个权重必须大于 0，且不超出双精度范围。",
    "write a number before each prefix, and no spaces or commas in it that separate words": (
        "请在每个前缀之前写一个数，前缀中不要有起分隔作用的空格或逗号"
    ),
    "a blend is 'weight prefix weight prefix …' or 'weight,prefix,weight,prefix,…': {}.": (
        "混合数据写作 '权重 前缀 权重 前缀 …' 或 '权重,前缀,权重,前缀,…'：{0}。"
    ),
    "write a number before each file, and no spaces or commas in it that separate words": (
        "请在每个文件之前写一个数，文件名中不要有起分隔作用的空格或逗号"
    ),
    "several files with weights are 'weight file weight file …' or 'weight,file,weight,file,…': {}.": (
        "带权重的多个文件写作 '权重 文件 权重 文件 …' 或 '权重,文件,权重,文件,…'：{0}。"
    ),
    "it names JSON files and .bin/.idx pairs: write paths of one kind.": "其中既有 JSON 文件又有 .bin/.idx 文件对：请只写一种。",
    "there is no {}: write the paths of JSON list or JSON Lines files.": "没有 {0}：请写 JSON 列表或 JSON Lines 文件的路径。",
    "these are several prefixes without weights: write '{}', for example.": "这是几个没有权重的前缀：例如写 '{0}'。",
    "there is no such file: write the path of a JSON list or JSON Lines file.": "没有这个文件：请写 JSON 列表或 JSON Lines 文件的路径。",
    "there is no {}: write the path of a .bin/.idx pair without its ending, or a .json file.": (
        "没有 {0}：请写一对 .bin/.idx 文件不带后缀的路径，或 .json 文件。"
    ),
    "{} is one file of a pair: write it without its ending, {}.": "{0} 是一对文件中的一个：请去掉后缀，写 {1}。",
    "a JSON list or JSON Lines file, or a .bin/.idx pair without its ending": (
        "JSON 列表或 JSON Lines 文件，或一对 .bin/.idx 文件不带后缀的路径"
    ),
    "{} is a file whose content is no JSON: write {}.": "{0} 这个文件的内容不是 JSON：请写 {1}。",
    # atomic_folder, checkout, engine
    "a file of that name exists: write a folder that does not exist yet.": "已有同名文件：请写一个尚不存在的文件夹。",
    "it is a mount point, which nothing can take the place of: write a folder inside it.": "它是挂载点，不能被替换：请写其中的一个文件夹。",
    "it exists and is not empty: write a folder that does not exist yet, or add --overwrite to replace it.": (
        "它已存在且不为空：请写一个尚不存在的文件夹，或加 --overwrite 替换它。"
    ),
    "--overwrite replaces a model, and there is none in it: remove it yourself, or write another folder.": (
        "--overwrite 只替换模型，而其中没有模型：请自行删除，或写别的文件夹。"
    ),
    "{} cannot be written; {}": "{0} 无法写入；{1}",
    "{} came to be while this ran; {}": "{0} 是在运行期间出现的；{1}",
    "it takes the folder that holds this project's megatron_patch/: write {}.": "需要含有本项目 megatron_patch/ 的文件夹：请写 {0}。",
    "that is another checkout than {}, whose code runs here: start the script in another folder, or write {}.": (
        "这是另一份代码，而这里运行的是 {0}：请换一个当前目录启动脚本，或写 {1}。"
    ),
    "unknown (2023 or older)": "未知（2023 年或更早）",
    "run: pip install 'megatron-core{}'.": "请运行：pip install 'megatron-core{0}'。",
    "megatron-core {} is installed, and this project was tried with {}; {}": "已安装 megatron-core {0}，而本项目试过的是 {1}；{2}",
    "The installed megatron-core {} is used.": "使用已安装的 megatron-core {0}。",
    "megatron-core is not installed; {}": "没有安装 megatron-core；{0}",
    "megatron.core {} of MEGATRON_PATH {} is used.": "使用 MEGATRON_PATH {1} 中的 megatron.core {0}。",
    "holds megatron.core {}, which is not in {}": "中是 megatron.core {0}，不在 {1} 范围内",
    "holds no megatron.core": "中没有 megatron.core",
    "does not exist": "不存在",
    "MEGATRON_PATH {} {}; the installed megatron-core {} is used.": "MEGATRON_PATH {0} {1}；使用已安装的 megatron-core {2}。",
    # layout
    "{} says {}; it holds 'release' or an iteration's number: write that there.": (
        "{0} 的内容是 {1}；应为 'release' 或迭代编号：请改正。"
    ),
    "There is no folder {}; give a checkpoint's root, or one iteration's folder in it.": (
        "没有文件夹 {0}；请给出检查点的根目录，或其中某次迭代的文件夹。"
    ),
    "holds no finished checkpoint": "不是完整的检查点",
    "{} says {}, but {} {}; convert or copy the checkpoint again.": "{0} 的内容是 {1}，但 {2} {3}；请重新转换或复制检查点。",
    "a Hugging Face folder": "Hugging Face 文件夹",
    "a folder as Meta publishes it": "Meta 发布的文件夹",
    "{} is {}, no Megatron checkpoint; convert it first, with model_convertor.sh.": (
        "{0} 是 {1}，不是 Megatron 检查点；请先用 model_convertor.sh 转换。"
    ),
    "{} holds no Megatron checkpoint: no {}, no {}, no mp_rank_ folders; give a checkpoint's root, or one iteration's folder in it.": (
        "{0} 中没有 Megatron 检查点（没有 {1}、{2}，也没有 mp_rank_ 文件夹）；请给出检查点的根目录，或其中某次迭代的文件夹。"
    ),
    "{} has format {}; this version reads format {}: use the version that wrote it.": (
        "{0} 的格式是 {1}；本版本读取格式 {2}：请使用写出它的版本。"
    ),
    "{} lacks {}; convert the checkpoint again.": "{0} 缺少 {1}；请重新转换检查点。",
    "{}: `model` does not describe a LLaMA (it has {}); convert the checkpoint again.": "{0}：`model` 描述的不是 LLaMA（{1}）；请重新转换检查点。",
    "{}: {}; convert the checkpoint again.": "{0}：{1}；请重新转换检查点。",
    "{}: dtype is {}; allowed are {}.": "{0}：dtype 是 {1}；可用的是 {2}。",
    "{}: {} is {}; allowed are {}: convert the checkpoint again.": "{0}：{1} 是 {2}；可用的是 {3}：请重新转换检查点。",
    # other_runs, recorded_run, starting_point
    "Whether this run could go on from {} is not known: {}": "不知道本次运行能否从 {0} 继续：{1}",
    "differs only in what may change ({})": "只在可以改变的参数上不同（{0}）",
    "has the same arguments under another name": "参数相同，只是名称不同",
    "This run begins anew. The run in {}, which is at iteration {}, {}: to go on from it, add {} after the last argument.": (
        "本次运行从头开始。{0} 中的运行已到第 {1} 次迭代，{2}：要从它继续，请在最后一个参数之后加 {3}。"
    ),
    "{} is not what a training run writes there": "{0} 不是训练会写在那里的内容",
    "{} ({}); or remove its folder.": "{0}（{1}）；或删除它所在的文件夹。",
    "{}: `model` and `options` are missing; copy the checkpoint again, or remove its folder.": (
        "{0}：缺少 `model` 和 `options`；请重新复制检查点，或删除它的文件夹。"
    ),
    "{}: {} is {}, not a folder; copy the checkpoint again, or remove its folder.": (
        "{0}：{1} 是 {2}，不是文件夹；请重新复制检查点，或删除它的文件夹。"
    ),
    "{} was {} and is {}": "{0} 原为 {1}，现为 {2}",
    " (--gradient-accumulation-steps {} keeps it)": "（--gradient-accumulation-steps {0} 可保持不变）",
    "{} holds other data than then": "{0} 的数据与当时不同",
    "the tokenizer in {} is another one than that in {}": "{0} 中的分词器与 {1} 中的不同",
    "{} says {}, which no training run writes there; write another OUTPUT_BASEPATH, or remove what is in that folder.": (
        "{0} 的内容是 {1}，训练不会写出这样的内容；请换一个 OUTPUT_BASEPATH，或清空该文件夹。"
    ),
    "{} says {}, and there is no {}; remove that file to start anew.": (
        "{0} 的内容是 {1}，但没有 {2}；要从头开始，请删除该文件。"
    ),
    "{} holds a run of the same name with other arguments: {}. Write another OUTPUT_BASEPATH, or the arguments of that run to go on "
    "with it.": "{0} 中已有同名但参数不同的运行：{1}。请换一个 OUTPUT_BASEPATH，或写那次运行的参数以继续它。",
    "{} is no training checkpoint of this project (run_config.json is not there): write a folder of OUTPUT_BASEPATH/checkpoint or "
    "one iteration's folder in it; PRETRAIN_CHECKPOINT_PATH takes the weights of others.": (
        "{0} 不是本项目的训练检查点（没有 run_config.json）：请写 OUTPUT_BASEPATH/checkpoint 中的文件夹，或其中某次迭代的文件夹；"
        "其他检查点的权重请写在 PRETRAIN_CHECKPOINT_PATH。"
    ),
    "{} names an earlier checkpoint of this run, which goes on from its last one, {}. To go back, write {} into {}.": (
        "{0} 是本次运行较早的检查点，而运行从最后一个检查点 {1} 继续。要退回，请把 {2} 写入 {3}。"
    ),
    "--resume-from names {}, and {} already holds a run that did not begin there. Remove or rename that folder to go on from the one "
    "you named, or leave the flag out to go on with what it holds.": (
        "--resume-from 指定了 {0}，而 {1} 中已有不是从那里开始的运行。要从指定的继续，请删除或重命名该文件夹；要继续其中的运行，请去掉该标志。"
    ),
    "--resume-from names {}, whose run learns something else: {}. Write that run's arguments; or name the folder as "
    "PRETRAIN_CHECKPOINT_PATH, without the flag, for its weights alone.": (
        "--resume-from 指定了 {0}，但那次运行学的内容不同：{1}。请写那次运行的参数；若只要它的权重，请去掉该标志，把文件夹写在 "
        "PRETRAIN_CHECKPOINT_PATH。"
    ),
    " with other settings ({})": "（设置有变：{0}）",
    "The run goes on from {}{}, and saves below {}.": "运行从 {0} 继续{1}，检查点保存在 {2} 下。",
    "The run goes on from {} with other settings ({}), and saves below {}.": "运行从 {0} 继续（设置有变：{1}），检查点保存在 {2} 下。",
    " Indexed data comes in the same order only as long as both lengths are within one pass over it.": (
        "索引数据只有在前后两个长度都不超过一遍时顺序才相同。"
    ),
    "It becomes longer ({}): from here on the learning rate follows a {} decay to MIN_LR over the new length, above that of the old "
    "one.{}": "训练变长（{0}）：从这里起，学习率在新的长度上按 {1} 衰减到 MIN_LR，高于原来的曲线。{2}",
    "PRETRAIN_CHECKPOINT_PATH {} is a training checkpoint": "PRETRAIN_CHECKPOINT_PATH {0} 是训练检查点",
    "its weights alone are taken, and training begins at its first iteration": "只取它的权重，训练从第一次迭代开始",
    "{} without run_config.json: {}.": "{0}，但没有 run_config.json：{1}。",
    "of another output folder": "（属于另一个输出文件夹）",
    "of another run": "（属于另一次运行）",
    " To go on with its optimizer, schedule and data position, add --resume-from {}.": (
        "要连同它的优化器、学习率进度和数据位置一起继续，请加 --resume-from {0}。"
    ),
    "PRETRAIN_CHECKPOINT_PATH {} is a training checkpoint {}{}: {}.{}": "PRETRAIN_CHECKPOINT_PATH {0} 是训练检查点{1}{2}：{3}。{4}",
    # hugging_face_folder
    "copy the folder again": "请重新复制该文件夹",
    "load it with transformers where it can be loaded, and write it with save_pretrained(FOLDER)": (
        "请在能加载它的环境中用 transformers 加载，再用 save_pretrained(文件夹) 写出"
    ),
    "{} holds {} ({} is there).": "{0} 中是 {1}（其中有 {2}）。",
    "GGUF files, llama.cpp's quantized form, from which no training goes on: take the model's own folder": (
        "GGUF 文件，即 llama.cpp 的量化格式，不能继续训练：请用模型本来的文件夹"
    ),
    "GGML files, llama.cpp's old quantized form, from which no training goes on: take the model's own folder": (
        "GGML 文件，即 llama.cpp 旧的量化格式，不能继续训练：请用模型本来的文件夹"
    ),
    "TensorFlow's weights: {}": "TensorFlow 的权重：{0}",
    "Flax's weights: {}": "Flax 的权重：{0}",
    "a .ckpt, as other training programs write it: export a Hugging Face folder with that program": (
        ".ckpt，由其他训练程序写出：请用那个程序导出 Hugging Face 文件夹"
    ),
    "a .pt, as other training programs write it: export a Hugging Face folder with that program": (
        ".pt，由其他训练程序写出：请用那个程序导出 Hugging Face 文件夹"
    ),
    "an ONNX model, from which no training goes on: take the model's own folder": "ONNX 模型，不能继续训练：请用模型本来的文件夹",
    "{} holds two models' shards without an index, {}: remove those of one.": "{0} 中有两个模型的分片，又没有索引（{1}）：请删除其中一个的分片。",
    "{} names files that are not there and was passed over.": "{0} 列出的文件不存在，已跳过。",
    "{} was passed over: {}": "{0} 已跳过：{1}",
    "{} was not read.": "没有读取 {0}。",
    "The adapter beside the weights (adapter_config.json) was not merged; to have it, move it into a folder of its own, and "
    "convert that with --base {}.": (
        "权重旁的适配器（adapter_config.json）没有合并；要合并，请把它移到单独的文件夹，并用 --base {0} 转换该文件夹。"
    ),
    "The weights were read from {}.": "权重读自 {0}。",
    "{} is no index of shards: {}": "{0} 不是分片索引：{1}",
    "{} is no index of shards: it has no weight_map; {}.": "{0} 不是分片索引：没有 weight_map；{1}。",
    "{} is no index of shards: its weight_map must name a file for each tensor; {}.": (
        "{0} 不是分片索引：weight_map 必须为每个张量指明文件；{1}。"
    ),
    "{} names the shard {}, which is no plain file name; it was refused.": "{0} 中的分片名 {1} 不是普通文件名，已拒绝。",
    " and {} more": " 等，另有 {0} 个",
    "{} {} missing, and {} names {}": "缺少 {0}{1:.0}，而 {2} 列出了{3:.0}",
    "{} holds an adapter, no whole model: merge it into its base first, with {}": "{0} 中是适配器，不是完整模型：请先合并到基础模型：{1}",
    "{} holds Meta's files, but not both consolidated.00.pth and {}; {}.": (
        "{0} 中是 Meta 的文件，但 consolidated.00.pth 和 {1} 没有齐全；{2}。"
    ),
    "{} holds {}.": "{0} 中是 {1}。",
    " {} {} another name: rename {}.": " {0}{1:.0} 的文件名不对：请改名{2:.0}。",
    "{} holds no weights: {}, or shards of these with their index must be there.{}": (
        "{0} 中没有权重：应有 {1}，或它们的分片和索引。{2}"
    ),
    "{} ({} is there)": "{0}（其中有 {1}）",
    "it is a folder of the Hugging Face cache: write {}.": "它是 Hugging Face 缓存的文件夹：请写 {0}。",
    "{} holds a model that {} quantized ({} is there), from which no training goes on: take the folder that it was made from, with "
    "float16 or bfloat16 weights.": (
        "{0} 中是 {1} 量化的模型（其中有 {2}），不能继续训练：请用量化前的文件夹，权重为 float16 或 bfloat16。"
    ),
    # llama
    "it asks for what this LLaMA does not compute: {}.": "它要求的内容本项目的 LLaMA 不计算：{0}。",
    "it lacks {}; a LLaMA config.json has all of {}.": "它缺少 {0}；LLaMA 的 config.json 应有 {1}。",
    "; give the output layer a matrix of its own: in transformers, copy embed_tokens.weight to lm_head.weight, set the key to false, "
    "and save": "；请给输出层单独的矩阵：在 transformers 中把 embed_tokens.weight 复制到 lm_head.weight，把该键设为 false，再保存",
    "; a LLaMA's projections have no biases": "；LLaMA 的线性层没有 bias",
    "take the folder that it was made from, with float16 or bfloat16 weights": "请用量化前的文件夹，权重为 float16 或 bfloat16",
    "hidden_size is {}, which the {} attention heads do not divide; it must be a multiple of them, or head_dim must say their size.": (
        "hidden_size 是 {0}，不能被 {1} 个注意力头整除；必须是其倍数，或由 head_dim 给出大小。"
    ),
    "The size of an attention head is {}; rotary embeddings need an even one.": "注意力头的大小是 {0}；旋转位置编码需要偶数。",
    "num_key_value_heads is {}, which does not divide the {} attention heads; it must.": (
        "num_key_value_heads 是 {0}，必须整除 {1} 个注意力头。"
    ),
    "Rotary scaling is {} by {}; supported are {}, by a factor of at least 1.": "旋转位置的缩放是 {0}，系数 {1}；支持 {2}，系数不小于 1。",
    "The head size is {}; dynamic rotary scaling needs more than 2.": "注意力头的大小是 {0}；dynamic 缩放要求大于 2。",
    "{} is {} where that size has {}": "{0} 是 {1}，而该大小应为 {2}",
    "{} = {} (supported: {}{})": "{0} = {1}（支持：{2}{3}）",
    "quantization_config {} (supported: unquantized weights; {})": "quantization_config {0}（支持：未量化的权重；{1}）",
    "bitsandbytes, 4 bits": "bitsandbytes，4 位",
    "bitsandbytes, 8 bits": "bitsandbytes，8 位",
    "an unnamed method": "未注明的方法",
    "There is no config.json in {}; copy the model's own there.": "{0} 中没有 config.json；请把模型自己的复制过去。",
    "max_position_embeddings {}": "max_position_embeddings {0}",
    "max_position_embeddings {}, times the factor {} of its {} rope_scaling": (
        "max_position_embeddings {0}，乘以 {2} rope_scaling 的系数 {1}"
    ),
    "the model is made for {} positions ({}): write {} or less, or add {} after the last argument, which trains on longer ones and "
    "writes the new limit into config.json.": (
        "模型只支持 {0} 个位置（{1}）：请写 {2} 或更小的值，或在最后一个参数之后加 {3}，以训练更长的序列并把新上限写入 config.json。"
    ),
    "{}: {} positions, more than the model's {}; config.json stays as it is, since dynamic rope_scaling begins at its "
    "max_position_embeddings and goes on to any length.": (
        "{0}：{1} 个位置，超过模型的 {2}；config.json 不变，因为 dynamic rope_scaling 从 max_position_embeddings 开始，可到任意长度。"
    ),
    "{}: the model's max_position_embeddings becomes {}, in its checkpoints and in what is exported. It was {}.": (
        "{0}：模型的 max_position_embeddings 改为 {1}，写入检查点和导出的模型。原为 {2}。"
    ),
    "{} is {} by {} and {} is {} by {}; transformers of different ages take different ones: remove the wrong one.": (
        "{0} 是 {1}，系数 {2}；{3} 是 {4}，系数 {5}；不同版本的 transformers 取不同的一个：请删去错误的。"
    ),
    "{} is {}; it must be null or an object such as {{'type': 'linear', 'factor': 2.0}}.": (
        "{0} 是 {1}；必须是 null，或形如 {{'type': 'linear', 'factor': 2.0}} 的对象。"
    ),
    "{} has rope_type {} and type {}: remove the wrong one.": "{0} 同时有 rope_type {1} 和 type {2}：请删去错误的。",
    "{} has the type {}; supported are {}. This model would compute other positions than those that the weights were trained with.": (
        "{0} 的类型是 {1}；支持 {2}。否则算出的位置与权重训练时的不同。"
    ),
    "{} has the key {}, which {} scaling does not use; remove it if it means nothing.": "{0} 有键 {1}，{2} 缩放不使用它；若无意义请删去。",
    "{} has the type {} and no factor; it must name one, such as 2.0.": "{0} 的类型是 {1}，但没有 factor；必须给出，如 2.0。",
    "1 or left out with the type 'default'": "1，或在类型为 'default' 时省略",
    "at least 1": "不小于 1",
    "{}.factor is {}; it must be {}.": "{0}.factor 是 {1}；必须{2}。",
    "{}.original_max_position_embeddings is {} and max_position_embeddings {}; transformers begins dynamic scaling at the latter: "
    "make them one.": (
        "{0}.original_max_position_embeddings 是 {1}，max_position_embeddings 是 {2}；transformers 从后者开始 dynamic 缩放：请改为一致。"
    ),
    "{} disagree; transformers of different ages take different ones: remove the wrong one.": (
        "{0} 不一致；不同版本的 transformers 取不同的一个：请删去错误的。"
    ),
    "rope_theta is {}; it must be above 1, and 10000 in LLaMA and LLaMA-2.": "rope_theta 是 {0}；必须大于 1，LLaMA 和 LLaMA-2 中为 10000。",
    "{} is {}; supported is 1: a LLaMA rotates whole heads.": "{0} 是 {1}；只支持 1：LLaMA 旋转整个注意力头。",
    "a number of many digits": "位数很多的数",
    "{} is {}; it must be a finite number.": "{0} 是 {1}；必须是有限的数。",
    # checkpoints that cannot be used, and refusals of the operating system
    "{} cannot be used: {}. It is kept under a name that ends in {}, and the run goes on from {}.": (
        "{0} 不能使用：{1}。它被改名保留，名字以 {2} 结尾；运行从 {3} 继续。"
    ),
    "{} holds weights alone (--save-weights-only): optimizer, learning-rate schedule and random state were not saved, and going on "
    "needs them. To start from its weights, name it as PRETRAIN_CHECKPOINT_PATH with another OUTPUT_BASEPATH.": (
        "{0} 只有权重（--save-weights-only）：没有保存优化器、学习率计划和随机状态，而继续训练需要它们。要从这些权重开始，"
        "请把它写为 PRETRAIN_CHECKPOINT_PATH，并换一个 OUTPUT_BASEPATH。"
    ),
    "{} that holds weights alone (--save-weights-only): {}.": "{0}，其中只有权重（--save-weights-only）：{1}。",
    "{}{}; make room there, in bytes and in inodes (df -h, df -i, quota).": "{0}{1}；请腾出空间（字节和 inode：df -h、df -i、quota）。",
    "{}{}; change its owner or its permissions, or name another place.": "{0}{1}；请修改所有者或权限，或换一个位置。",
    "{}{}; mount it writable, or name another place.": "{0}{1}；请以可写方式挂载，或换一个位置。",
    "{}{}; it is not there, or was removed or renamed while this ran.": "{0}{1}；它不存在，或在运行期间被删除或改名。",
    "{}{}; the disk, or the network to it, fails.": "{0}{1}；磁盘或通往它的网络出了故障。",
    "{}{}; the file server, or the network to it, does not answer.": "{0}{1}；文件服务器或通往它的网络没有应答。",
    "{}{}; raise the limit of open files (ulimit -n).": "{0}{1}；请提高可打开文件数的上限（ulimit -n）。",
}
