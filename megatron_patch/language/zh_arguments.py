"""Chinese of `arguments/` and of argparse's few sentences. Names of arguments stay as the scripts document them."""

from __future__ import annotations

SENTENCES = {
    # command_line
    "it stands behind the documented arguments and belongs to no flag: remove it.": "它在规定的参数之后，又不属于任何标志：请去掉。",
    "after the last argument": "最后一个参数之后",
    "there is no such flag: write --{} false.": "没有这个标志：请写 --{0} false。",
    "there is no such flag: write {}, or remove it.": "没有这个标志：请写 {0}，或去掉它。",
    "there is no such flag: remove it; --help lists those that there are.": "没有这个标志：请去掉；--help 列出全部标志。",
    "argument {}: got '--'; write a value behind the equals sign": "参数 {0}：收到 '--'；请在等号后面写上值",
    "argument '{}': {}": "参数 '{0}'：{1}",
    "{}: {}. --help lists the flags.": "{0}：{1}。--help 列出全部标志。",
    "argument {}: expected one argument": "参数 {0}：缺少值",
    "argument {}: expected at least one argument": "参数 {0}：至少要有一个值",
    "argument {}: invalid choice: {} (choose from {})": "参数 {0}：收到 {1}；可选值为 {2}",
    "the following arguments are required: {}": "缺少必需的参数：{0}",
    # commands, usage
    "Next, with your own {}:": "下一步（请换成自己的 {0}）：",
    "Next:": "下一步：",
    "Usage: sh {} ARGUMENT...": "用法：sh {0} 参数...",
    "Flags may follow the last one: --flag value ...; --help lists them.": "最后一个参数之后可以写标志：--标志 值 ...；--help 列出全部标志。",
    "An example that works as it stands:": "可以直接运行的示例：",
    "{} takes {} arguments and got {}; write the missing ones, from {} on.": "{0} 需要 {1} 个参数，收到 {2} 个；请从 {3} 起补全。",
    "{} takes {} arguments and got {}; number {} is '{}', which is no --flag: remove it.": (
        "{0} 需要 {1} 个参数，收到 {2} 个；第 {3} 个是 '{4}'，不是 --标志：请去掉。"
    ),
    "these are the {} arguments of the original's present {}, not the {} documented ones ({}). Write:": (
        "这 {0} 个参数属于原项目现在的 {1}，不是这里规定的 {2} 个（{3}）。请写："
    ),
    "without {}": "少了 {0}",
    "with {}": "多了 {0}",
    # description, in a sentence
    "a number of at least {}": "不小于 {0} 的数",
    "a number above {}": "大于 {0} 的数",
    "a number from {} to {}": "{0} 到 {1} 的数",
    "a number from above {} to {}": "大于 {0} 且不大于 {1} 的数",
    "a number from {} to below {}": "不小于 {0} 且小于 {1} 的数",
    "a number from above {} to below {}": "大于 {0} 且小于 {1} 的数",
    # findings
    "{}: got '{}'; {}": "{0}：收到 '{1}'；{2}",
    "{}: 1 argument error; nothing was started.": "{0}：1 个参数有误，没有启动任何进程。",
    "{}: {} argument errors; nothing was started.": "{0}：{1} 个参数有误，没有启动任何进程。",
    "it takes a path, and an empty text is none: write the path.": "需要一个路径，不能为空：请写路径。",
    "it has {} digits, and a number may have {}: write {}, for example.": "它有 {0} 位，最多 {1} 位：例如写 {2}。",
    "it takes a whole number of at most {}: write {}, for example.": "需要不大于 {0} 的整数：例如写 {1}。",
    "it takes a whole number of at least {}: write {}, for example.": "需要不小于 {0} 的整数：例如写 {1}。",
    "it takes a whole number of at least {}, in digits: write {}.": "需要不小于 {0} 的整数，只用数字 0–9：请写 {1}。",
    "it takes {}: write {}.": "需要{0}：请写 {1}。",
    "it takes one of {}: write {}.": "可选值为 {0}：请写 {1}。",
    "it takes true or false: write {}.": "需要 true 或 false：请写 {0}。",
    "one of these, in this spelling": "其中之一，大小写与拼写须一致",
    "{}, for example": "{0}（例如）",
    "it takes a size such as 5GB or 500MB: write {}.": "需要大小，如 5GB、500MB：请写 {0}。",
    "5GB, for example": "5GB（例如）",
    # training: layout, batch, learning rate, lengths
    "attention heads": "个注意力头",
    "KV groups": "个 KV 组",
    "rows of the feed-forward layer": "行前馈层权重",
    "it must divide the {} {}: write one of {}.": "必须整除 {0} {1}：可写 {2} 之一。",
    "a vocabulary of {} rows is too small for it: write one of {}.": "词表只有 {0} 行，对它来说太小：可写 {1} 之一。",
    "it must divide the {} layers: write one of {}.": "必须整除 {0} 层：可写 {1} 之一。",
    "TP × PP = {} must divide the {} processes (nodes × processes per node = {} × {}): write ones whose product is one of {}, or "
    "use more GPUs.": "TP × PP = {0} 必须整除 {1} 个进程（节点数 × 每节点进程数 = {2} × {3}）：乘积须为 {4} 之一，或使用更多 GPU。",
    "{} is true and TP is 1: sequence parallelism has nothing to split and is off.": "{0} 为 true 而 TP 为 1：序列并行没有可切分的，已关闭。",
    "it must be a multiple of BATCH_SIZE × data-parallel size = {} × {}: write {}.": (
        "必须是 BATCH_SIZE × 数据并行度 = {0} × {1} 的倍数：请写 {2}。"
    ),
    "it needs a GPU of compute capability 8.9 or higher, such as an H100 or an H20, and there is none here: write bf16.": (
        "需要计算能力 8.9 以上的 GPU，例如 H100 或 H20，而这里没有：请写 bf16。"
    ),
    "it needs GPUs of compute capability 8.9 or higher, such as an H100 or an H20, and this machine's {} has {}: write bf16.": (
        "需要计算能力 8.9 以上的 GPU，例如 H100 或 H20，而这台机器的 {0} 是 {1}：请写 bf16。"
    ),
    "an {} has no FP8 tensor cores: write bf16.": "{0} 没有 FP8 张量核心：请写 bf16。",
    "its products need widths that are multiples of {} on each GPU, and {} ÷ TP {} is none: write bf16.": (
        "FP8 矩阵乘法要求每张 GPU 上的宽度是 {0} 的倍数，而 {1} ÷ TP {2} 不是：请写 bf16。"
    ),
    "with PR fp8 a micro-batch must have a multiple of {} tokens on each GPU: write {}.": (
        "PR 为 fp8 时，每张 GPU 上一个 micro-batch 的 token 数必须是 {0} 的倍数：请写 {1}。"
    ),
    "it leaves none of the model's {} layers in FP8: write {} or less, or PR bf16.": (
        "这样模型的 {0} 层中没有一层使用 FP8：请写 {1} 或更小的值，或 PR bf16。"
    ),
    "it must not be above LR = {}: write {} or less.": "不能大于 LR = {0}：请写 {1} 或更小的值。",
    "it must not be above SEQ_LEN = {}: write {} or less.": "不能大于 SEQ_LEN = {0}：请写 {1} 或更小的值。",
    "with SP true it must be a multiple of TP = {}: write {}.": "SP 为 true 时必须是 TP = {0} 的倍数：请写 {1}。",
    "one iteration is GLOBAL_BATCH_SIZE × SEQ_LEN = {} tokens: write {} or more.": (
        "一次迭代是 GLOBAL_BATCH_SIZE × SEQ_LEN = {0} 个 token：请写 {1} 或更大的值。"
    ),
    "of the {} iterations of {} tokens at least one must follow it: write {}, for example.": (
        "共 {0} 次迭代，每次 {1} 个 token，预热之后至少要剩一次：例如写 {2}。"
    ),
    # training: model, checkpoint, data
    "{} has no config.json; MODEL_SIZE {} says what its model is.": "{0} 中没有 config.json；模型结构按 MODEL_SIZE {1}。",
    "auto reads the checkpoint's config.json, and the checkpoint is none: write {}.": (
        "auto 读取检查点的 config.json，而检查点是 none：请写 {0} 之一。"
    ),
    "the checkpoint's config.json disagrees ({}): write auto, or another checkpoint.": (
        "与检查点的 config.json 不符（{0}）：请写 auto，或换一个检查点。"
    ),
    "{} It takes the folder that model_convertor.sh made, or none.": "{0}这里需要 model_convertor.sh 生成的文件夹，或 none。",
    "{} Still, the run goes on from {}.": "{0}不过本次运行从 {1} 继续。",
    "its own checkpoint": "它自己的检查点",
    "--resume-from: {} Still, the run goes on from its own checkpoint.": "--resume-from：{0}不过本次运行从自己的检查点继续。",
    "the checkpoint was converted with {}: write {}.": "检查点转换时用的是 {0}：请写 {1}。",
    "EXTRA_VOCAB_SIZE 0: the {} rows that {} has beyond its vocabulary are kept.": "EXTRA_VOCAB_SIZE 0：{1} 中超出词表的 {0} 行予以保留。",
    "its embedding has {} rows, and config.json's vocabulary {}: put its own there.": (
        "它的 embedding 有 {0} 行，而 config.json 的词表是 {1}：请放入它自己的 config.json。"
    ),
    "its vocabulary is {}, and the checkpoint's embedding has {} rows: write another size.": (
        "它的词表是 {0}，而检查点的 embedding 有 {1} 行：请写别的大小。"
    ),
    "it is for a PRETRAIN_CHECKPOINT_PATH of 2023 (mp_rank_ folders): remove the flag.": (
        "它只用于 2023 年格式的 PRETRAIN_CHECKPOINT_PATH（mp_rank_ 文件夹）：请去掉该标志。"
    ),
    "dynamic rope_scaling goes by a sample's own length beyond {} tokens, and a packed row has samples of several: remove the flag, "
    "or write a smaller SEQ_LEN.": (
        "超过 {0} 个 token 后，dynamic rope_scaling 取决于每个样本自己的长度，而打包的一行里有多个样本：请去掉该标志，或减小 SEQ_LEN。"
    ),
    "JSON data needs a tokenizer, and there is no tokenizer.model and no tokenizer.json beside the checkpoint: copy one there, or "
    "add --tokenizer-path FOLDER after the last argument.": (
        "JSON 数据需要分词器，而检查点旁没有 tokenizer.model 或 tokenizer.json：请复制一份过去，或在最后一个参数之后加 "
        "--tokenizer-path 文件夹。"
    ),
    "these are the {} arguments of {}, which is here too. Write:": "这是 {1} 的 {0} 个参数，这里也有这个脚本。请写：",
    "the rate rises for so many of the {} iterations, and rests for as many at the end: write {} or less.": (
        "{0} 次迭代中，学习率先用这么多次上升，最后又有同样多次不再变化：请写不大于 {1} 的数。"
    ),
    "{} is true: this project's kernels do what Transformer Engine would; nothing changes.": (
        "{0} 为 true：Transformer Engine 的工作由本项目的内核完成，没有变化。"
    ),
    "it goes by the validation loss, and --eval-interval 0 turns evaluations off: write --eval-interval 100.": (
        "它依据验证 loss，而 --eval-interval 0 关闭了评估：请写 --eval-interval 100。"
    ),
    "each validation file has a loss of its own, and no weight: write '{}'.": "每个验证文件各有自己的 loss，不带权重：请写 '{0}'。",
    "{} is for pre-training, and changes nothing here.": "{0} 只用于预训练，在这里不起作用。",
    "{} is for runs by iterations, and changes nothing here: each epoch ends with an evaluation over the whole of VALID_DATASET_PATH.": (
        "{0} 用于按迭代数的训练，在这里不起作用：每个 epoch 结束时在整个 VALID_DATASET_PATH 上评估。"
    ),
    "{} is for JSON data, and changes nothing here.": "{0} 用于 JSON 数据，在这里不起作用。",
    "DATASET_PATH names one file of a pair; the pair {} is used.": "DATASET_PATH 是一对文件中的一个；使用这一对 {0}。",
    "it is for JSON data; indexed data is packed as it is: remove the flag.": (
        "它只用于 JSON 数据；索引数据本来就是打包的：请去掉该标志。"
    ),
    "it takes a folder, which is made where it does not exist: write its path.": "需要一个文件夹，不存在时会创建：请写它的路径。",
    # flags
    "it takes shares of training, validation and test, the first above 0, those left out 0: write 98,2,0.": (
        "需要训练、验证、测试的份额，第一个大于 0，省略的为 0：请写 98,2,0。"
    ),
    "it must be above --profile-step-start = {}: write {}.": "必须大于 --profile-step-start = {0}：请写 {1}。",
    "there is no such folder: write the one that holds the tokenizer.": "没有这个文件夹：请写存放分词器的文件夹。",
    "it is for fine-tuning by EPOCH; here GLOBAL_BATCH_SIZE says it: remove the flag.": (
        "它只用于按 EPOCH 的微调；这里由 GLOBAL_BATCH_SIZE 决定：请去掉该标志。"
    ),
    # processes
    "the environment's {} is '{}'; it must be a whole number from {} to {}, in digits.": (
        "环境变量 {0} 是 '{1}'；必须是 {2} 到 {3} 的整数，只用数字 0–9。"
    ),
    "dlc takes {} from the environment, which lacks them: write dsw, or run as a DLC job.": (
        "dlc 要从环境变量取 {0}，但没有设置：请写 dsw，或作为 DLC 任务运行。"
    ),
    "{} is {} and {} {}; under dlc they count nodes, so {} must be below {}.": (
        "{0} 是 {1}，{2} 是 {3}；dlc 下它们按节点计数，{4} 必须小于 {5}。"
    ),
    "WORLD_SIZE is {} and PET_NNODES {}; under dlc both count nodes. In a Kubeflow PyTorchJob leave nprocPerNode out and set "
    "NPROC_PER_NODE in the container's env.": (
        "WORLD_SIZE 是 {0}，PET_NNODES 是 {1}；dlc 下两者都按节点计数。在 Kubeflow PyTorchJob 中请去掉 nprocPerNode，"
        "在容器的环境变量中设置 NPROC_PER_NODE。"
    ),
    "None of 100 TCP ports between 12000 and 32000 is free; set MASTER_PORT to one that is.": (
        "12000 到 32000 之间试了 100 个 TCP 端口，都不空闲；请把 MASTER_PORT 设为空闲的端口。"
    ),
    # conversion
    "it is for checkpoints of 2023, with mg2hf = true: remove the flag.": "它只用于 2023 年格式的检查点，且 mg2hf = true：请去掉该标志。",
    "it takes a folder that does not exist yet: write its path.": "需要一个尚不存在的文件夹：请写它的路径。",
    "the source is in it, and must stay: write another folder.": "源模型就在其中，必须保留：请写别的文件夹。",
    "the checkpoint was made with {}: write that, or 0, which keeps its rows.": "检查点生成时用的是 {0}：请写它，或写 0（保留已有的行）。",
    "there is no such folder: write the Hugging Face folder with config.json and the weights.": (
        "没有这个文件夹：请写含有 config.json 和权重的 Hugging Face 文件夹。"
    ),
    "there is nothing of that name: write the folder of the model.": "不存在：请写模型所在的文件夹。",
    "with mg2hf = false it takes a Hugging Face folder, and this is none: write one, or mg2hf = true.": (
        "mg2hf = false 时需要 Hugging Face 文件夹，而这不是：请写一个，或写 mg2hf = true。"
    ),
    "{}: write {}.": "{0}：请写 {1}。",
    # preparation
    "--shard asks for one part of the input: write one of the two.": "--shard 只处理输入的一份：请只写二者之一。",
    "it is not made in parts: write it without --shard.": "它不能分份生成：请不带 --shard 再写。",
    "a .bin/.idx pair needs a tokenizer: write the folder that holds tokenizer.model.": (
        "生成 .bin/.idx 需要分词器：请写存放 tokenizer.model 的文件夹。"
    ),
    "one of --output-prefix, --output-dir and --sft-output-dir must be there: write one.": (
        "--output-prefix、--output-dir、--sft-output-dir 至少要有一个：请写一个。"
    ),
    # evaluation, generation, serving
    "it must be a multiple of {} × {} replicas: write {}.": "必须是 {0} × {1} 个副本的倍数：可写 {2}。",
    "it is neither a size nor a folder: write one of {}, or a folder's path.": "既不是模型规模，也不是文件夹：可写 {0} 之一，或文件夹的路径。",
    "there is no {}: write files, or prefixes of .bin/.idx pairs, between blanks or commas.": (
        "没有 {0}：请写文件，或 .bin/.idx 文件不带后缀的路径，以空格或逗号分隔。"
    ),
    "it must not be above SEQ_LEN = {}, or tokens would be left out: write {} or less.": (
        "不能大于 SEQ_LEN = {0}，否则会漏掉 token：请写 {1} 或更小的值。"
    ),
    "it takes the path of a file: write one.": "需要文件的路径：请写一个。",
    "there is no such file: write the path of a file of JSON Lines with query, or none.": (
        "没有这个文件：请写含 query 的 JSON Lines 文件的路径，或 none。"
    ),
    "it must hold INPUT_SEQ_LEN + OUTPUT_SEQ_LEN = {} tokens: write {} or more.": (
        "必须容纳 INPUT_SEQ_LEN + OUTPUT_SEQ_LEN = {0} 个 token：请写 {1} 或更大的值。"
    ),
    "it is INPUT_FILE: write another path.": "它就是 INPUT_FILE：请写别的路径。",
    "it opens a prompt on the terminal, which a job of several nodes lacks: write a file of queries.": (
        "它会在终端上打开提示符，多节点任务没有终端：请写一个查询文件。"
    ),
    "nobody can listen there at {} ({}): write another --port, or --host.": "不能在 {0} 上监听该端口（{1}）：请写别的 --port 或 --host。",
    "TP × PP is {} and this machine has {} visible GPUs; write smaller ones.": "TP × PP 是 {0}，而本机可见 {1} 个 GPU；请写小一些的。",
    "it takes an address of this machine: write 127.0.0.1, or 0.0.0.0 for everyone who reaches it.": (
        "需要本机的地址：请写 127.0.0.1，或写 0.0.0.0 对所有能访问的人开放。"
    ),
    "{} holds neither tokenizer.model nor tokenizer.json: write --tokenizer-path and the folder that does.": (
        "{0} 中没有 tokenizer.model 或 tokenizer.json：请写 --tokenizer-path 和存放它的文件夹。"
    ),
    "MEGATRON_PATH is not used: no engine of Megatron's is needed without training.": "没有使用 MEGATRON_PATH：不训练时不需要 Megatron。",
    "the model is made for {} positions: write {} or less.": "模型支持 {0} 个位置：请写 {1} 或更小。",
    "the checkpoint has {}: write {}.": "检查点是 {0}：请写 {1}。",
    # gpus
    "to train on the CPU on purpose, put CUDA_VISIBLE_DEVICES= in front of the command": (
        "若有意在 CPU 上训练，请在命令前加 CUDA_VISIBLE_DEVICES="
    ),
    "This machine has {} GPU{} with {}": "本机有 {0} 个 GPU{1:.0}，{2}",
    "Install NVIDIA's driver {} or newer": "请安装 NVIDIA 驱动 {0} 或更新的版本",
    "{}, and torch {} wants CUDA {}. {}{}; {}.": "{0}，而 torch {1} 需要 CUDA {2}。{3}{4}；{5}。",
    "NVIDIA's driver{}{} ({})": "NVIDIA 驱动{0}{1}（{2}）",
    "{}, which does not start: cuInit answers {}. nvidia-smi says why; after an update of the driver a restart of the machine is "
    "due; {}.": "{0}，但无法启动：cuInit 返回 {1}。原因请看 nvidia-smi；更新驱动后需要重启机器；{2}。",
    "{}, and torch {} is a build without CUDA. Run: {}; {}.": "{0}，而 torch {1} 是不带 CUDA 的版本。请运行：{2}；{3}。",
    ", or run: {}": "，或运行：{0}",
    "CUDA up to {}.{}": "最高支持 CUDA {0}.{1}",
    "an unknown CUDA": "CUDA 版本未知",
    # room_on_disk
    "one checkpoint takes {} GB, and the disk of {} has {} GB free: make room there, or write a path on another disk.": (
        "一个检查点需要 {0} GB，而 {1} 所在磁盘剩余 {2} GB：请腾出空间，或写另一块磁盘上的路径。"
    ),
    "the run writes in {}, and nothing can be written there: change its permissions, or write another path.": (
        "运行要在 {0} 中写入，而那里不能写入：请修改权限，或写别的路径。"
    ),
}
