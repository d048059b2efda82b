"""Chinese of `train/`, `core/`, `plan/`, the choice of attention, and the command megatron-patch."""

from __future__ import annotations

SENTENCES = {
    # loop, setup, graphs, product_choices
    "  saved checkpoint of iteration {} in {} s to {}": "  已保存第 {0} 次迭代的检查点，用时 {1} 秒：{2}",
    "  saved checkpoint of iteration {} in {} s beside the training to {}": "  已保存第 {0} 次迭代的检查点，与训练同时进行，用时 {1} 秒：{2}",
    "  starting from the weights of {}": "  从 {0} 的权重开始",
    "  nothing is left to do: {}": "  已无事可做：{0}",
    "the run has its {} iterations; for more, raise {} and add --resume-from {}": (
        "该运行已完成 {0} 次迭代；要继续，请增大 {1} 并加上 --resume-from {2}"
    ),
    "  the nodes' last checkpoints differ: {}; {} is the last that all have": "  各节点最后的检查点不同：{0}；{1} 是所有节点都有的最后一个",
    "node {} has {}": "节点 {0} 有 {1}",
    "The nodes have no checkpoint of {} in common (--local-output true): {}. Start the run on the nodes that wrote it, or remove that "
    "folder from all of them to start anew.": (
        "各节点在 {0} 中没有共同的检查点（--local-output true）：{1}。请在写下它的节点上启动，或在所有节点上删除该文件夹以重新开始。"
    ),
    "  reading the checkpoint {}": "  读取检查点 {0}",
    "  going on from iteration {}: {} (read in {} s)": "  从第 {0} 次迭代继续：{1}（读取用时 {2} 秒）",
    "  starting from random weights, seed {}": "  从随机权重开始，种子 {0}",
    " stopping at iteration {} as asked; the same command goes on from here.": " 按要求在第 {0} 次迭代停止；同一命令会从这里继续。",
    " stopping at iteration {} early: {}.": " 在第 {0} 次迭代提前停止：{1}。",
    # best
    "  the lowest validation loss so far: {} names iteration {}": "  目前最低的验证 loss：{0} 写的是第 {1} 次迭代",
    "  nothing is left to do: {}; a larger number goes on": "  没有剩余的工作：{0}；写更大的数可以继续",
    "the validation loss was not below its lowest, {}, in the last {} evaluations (--early-stopping-patience {})": (
        "最近 {1} 次评估的验证 loss 没有低于最低值（{0}）（--early-stopping-patience {2}）"
    ),
    "there was none": "尚无最低值",
    "{} at iteration {}": "第 {1} 次迭代的 {0}",
    "the lowest validation loss so far is {}, of iteration {}": "目前最低的验证 loss 是第 {1} 次迭代的 {0}",
    "{}, whose checkpoint is not in this folder; the next lower one is kept": "{0}，其检查点不在此文件夹中；将保留下一个更低的",
    "{}: there is no validation loss to go by, since evaluation is skipped; name validation data of which something is learnt, or leave "
    "the flag out.": "{0}：跳过了评估，没有可依据的验证 loss；请给出有可学内容的验证数据，或去掉该标志。",
    # data: several files, tokenizer.json
    "{}: the split {} leaves no validation data; evaluation is skipped": "{0}：--split {1} 没有留出验证数据，跳过评估",
    "{} of an epoch's {} samples, {} passes over its {}": "每个 epoch 的 {1} 条样本中占 {0} 条，即对其 {3} 条样本过 {2} 遍",
    "{} has the weight {} of {}, so none of an epoch's {} samples comes from it; write a higher weight, or leave the file out.": (
        "{0} 的权重是 {2} 中的 {1}，每个 epoch 的 {3} 条样本没有一条来自它；请增大权重，或去掉该文件。"
    ),
    "transformers reads tokenizer.json: remove it from the source, and the next conversion makes one.": (
        "transformers 读取 tokenizer.json：请从源文件夹中删除它，下次转换会重新生成。"
    ),
    "it makes {} of {}, and SentencePiece {}": "它把 {1} 切分为 {0}，而 SentencePiece 切分为 {2}",
    "no {} was written, since none reads texts as this tokenizer.model does: {}.": (
        "没有写 {0}，因为无法与这个 tokenizer.model 切分一致：{1}。"
    ),
    "{}, copied from the source, is not this tokenizer.model's: {}. {}": "从源复制的 {0} 与这个 tokenizer.model 不符：{1}。{2}",
    "no {} was made: {}": "没有生成 {0}：{1}",
    "{} was copied from the source, and transformers cannot read it: {}": "{0} 是从源复制的，transformers 无法读取：{1}",
    "  attention: {} ({})": "  attention：{0}（{1}）",
    "  CUDA graphs: no ({})": "  CUDA graphs：不使用（{0}）",
    "  CUDA graphs: yes": "  CUDA graphs：使用",
    "  LLaMA with {} parameters in {}; TP {}, PP {}, data parallel {}, on {}": (
        "  LLaMA，{0} 个参数，{1}；TP {2}，PP {3}，数据并行 {4}，运行在 {5} 上"
    ),
    "  communication of {}": "  通信方式：{0}",
    "data parallel: copy engines": "数据并行：copy engine",
    "{}: copy engines": "{0}：copy engine",
    "data parallel: NCCL ({})": "数据并行：NCCL（{0}）",
    "{}: NCCL ({})": "{0}：NCCL（{1}）",
    "there is no GPU": "没有 GPU",
    "several nodes": "多个节点",
    "a process does not see the others' GPUs": "进程看不到其他进程的 GPU",
    "no access from GPU to GPU": "GPU 之间不能互访",
    "what is read from another GPU's memory is wrong": "从另一 GPU 显存读到的内容有误",
    "one micro-batch goes through the model in one pass: {}": "每次前向处理一个 micro-batch：{0}",
    "{} micro-batches go through the model in one pass: {}": "每次前向处理 {0} 个 micro-batch：{1}",
    "{} need {} GiB, and {} GiB are left": "{0} 个需要 {1} GiB，剩余 {2} GiB",
    "AC sel: {} of {} layers keep attention's probabilities, for which memory is left": (
        "AC sel：显存有余，{1} 层中有 {0} 层保留注意力的概率，不再重算"
    ),
    "{} need {} GiB, and {} GiB are left here, too little elsewhere": "{0} 个需要 {1} GiB，此处剩余 {2} GiB，别处不够",
    "algorithms of {} matrix products are those of {}": "{0} 个矩阵乘的算法取自 {1}",
    "{} cannot be used ({}: {}); products are measured again": "{0} 不能使用（{1}：{2}）；将重新测量矩阵乘",
    # launch_watch
    "  the GPU is idle for {} of a micro-batch, since Python launches kernels more slowly than they run (CUDA graphs: no, {}). What "
    "helps: {}.": (
        "  GPU 在每个 micro-batch 中有 {0} 的时间空闲，因为 Python 启动 kernel 比其执行慢（未使用 CUDA graphs：{1}）。可以改善的办法：{2}。"
    ),
    "BATCH_SIZE above {}, whose kernels are longer": "BATCH_SIZE 大于 {0}，使 kernel 更长",
    "TP below {}": "TP 小于 {0}",
    # core
    "megatron-core {} is used, and this project was tried with {}: run pip install 'megatron-core{}', or name such a source tree as "
    "MEGATRON_PATH.": (
        "使用的是 megatron-core {0}，而本项目试过的是 {1}：请运行 pip install 'megatron-core{2}'，或用 MEGATRON_PATH 指定这样的源码树。"
    ),
    # model, attention_backends
    "FL is false": "FL 为 false",
    "PyTorch's scaled_dot_product_attention is what CPUs have": "CPU 上使用 PyTorch 的 scaled_dot_product_attention",
    "{} with head size {} on compute capability {}.{}": "{0}，head size {1}，compute capability {2}.{3}",
    "its {} has no {}": "其 {0} 中没有 {1}",
    "PyTorch's unfused attention: no fused kernel takes {}": "PyTorch 的非融合 attention：没有支持 {0} 的融合 kernel",
    "{} is installed but cannot be imported: {}": "已安装 {0}，但无法导入：{1}",
    "cuDNN through PyTorch is the fastest on compute capability 9 and 10": "compute capability 9 和 10 上 PyTorch 的 cuDNN 最快",
    "PyTorch's flash kernel for packed samples skips what a mask would hide": "PyTorch 用于打包样本的 flash kernel 会跳过被 mask 遮住的部分",
    "PyTorch's flash kernel; there is no flash-attn for this GPU, and cuDNN is for compute capability 9 and 10": (
        "PyTorch 的 flash kernel；此 GPU 上没有 flash-attn，而 cuDNN 用于 compute capability 9 和 10"
    ),
    "packed samples need a mask here, which PyTorch's memory-efficient kernel takes": (
        "打包样本在这里需要 mask，PyTorch 的 memory-efficient kernel 支持"
    ),
    "PyTorch's memory-efficient kernel takes {}, which no flash kernel does": (
        "PyTorch 的 memory-efficient kernel 支持 {0}，flash kernel 都不支持"
    ),
    "{} is installed": "已安装 {0}",
    # plan
    "GPU memory, expected{}: {} GiB ({}, other {}).": "预计显存{0}：{1} GiB（{2}、其他 {3}）。",
    "GPU memory, expected{}: {} GiB ({}, other {}), of {}.{}": "预计显存{0}：{1} GiB（{2}、其他 {3}），共 {4}。{5}",
    " with {} micro-batches in a pass": "（每次前向 {0} 个 micro-batch）",
    " That leaves little for fragments; a smaller BATCH_SIZE or AC full is safer.": "余量很少，容易受碎片影响；减小 BATCH_SIZE 或用 AC full 更稳妥。",
    "weights {}": "权重 {0}",
    "gradients {}": "梯度 {0}",
    "optimizer {}": "优化器 {0}",
    "activations {}": "激活 {0}",
    "tensor {}": "张量并行 {0}",
    "pipeline {}": "流水线 {0}",
    "weights": "权重",
    "gradients": "梯度",
    "optimizer": "优化器",
    "activations": "激活",
    "gradients in work, logits": "计算中的梯度、logits",
    "NCCL's buffers": "NCCL 缓冲区",
    "CUDA's context": "CUDA 上下文",
    "together": "合计",
    "of it torch's peak": "其中 torch 的峰值",
    "stage {}": "stage {0}",
    "{} of the {} GiB of an {}, {}: it fits.": "{2}：{1} GiB 中占 {0}，即 {3}：放得下。",
    "{} of the {} GiB of an {}, {}: it does not fit.": "{2}：{1} GiB 中占 {0}，即 {3}：放不下。",
    "LLaMA with {} parameters in {}: TP {}, PP {}, data parallel {}, {} micro-batches of {} × {} tokens for each replica{}.": (
        "LLaMA，{0} 个参数，{1}：TP {2}，PP {3}，数据并行 {4}，每个副本 {5} 个 micro-batch，每个 {6} × {7} 个 token{8}。"
    ),
    ", {} in a pass": "，每次前向 {0} 个",
    "Each GPU sends in one step, GB: nothing.": "每个 GPU 每步不发送数据。",
    "Each GPU sends in one step, GB: {}.": "每个 GPU 每步发送（GB）：{0}。",
    "The largest BATCH_SIZE that fits is {}.": "放得下的最大 BATCH_SIZE 是 {0}。",
    "What fits: {}.": "放得下的有：{0}。",
    "No layout of these GPUs holds it; use more of them.": "这些 GPU 的任何布局都放不下；请使用更多 GPU。",
    "{} iterations": "{0} 次迭代",
    "{} epochs": "{0} 个 epoch",
    "{} processes: TP {}, PP {}, data parallel {}.": "{0} 个进程：TP {1}，PP {2}，数据并行 {3}。",
    "{} of {} samples of {} tokens, {} tokens each; {} micro-batches of {} for each replica.": (
        "{0}，每次 {1} 条样本，每条 {2} 个 token，合计 {3} 个 token；每个副本 {4} 个大小为 {5} 的 micro-batch。"
    ),
    "write {}": "请写 {0}",
    "use more GPUs": "请使用更多 GPU",
    "the run takes {} GiB of a GPU's memory, and there are {}: {}.": "运行需要每个 GPU {0} GiB 显存，而只有 {1}：{2}。",
    "other kernels {}": "其他 kernel {0}",
    "products {}": "矩阵乘 {0}",
    "attention {}": "attention {0}",
    "inside layers {}": "层内通信 {0}",
    "gradients and weights sent {}": "梯度与权重通信 {0}",
    "The speed of an {} is not known here; --gpu names the kinds that are.": "这里没有 {0} 的速度；--gpu 列出已有的型号。",
    "Expected: {} tokens/s per GPU, {} s a step.": "预计：每个 GPU 每秒 {0} 个 token，每步 {1} 秒。",
    "Expected: {} tokens/s per GPU, {} s a step from its data sheet; this kind was not measured.": (
        "预计：每个 GPU 每秒 {0} 个 token，每步 {1} 秒（按产品规格，未实测此型号）。"
    ),
    "Seconds of a step: {}.": "每步的秒数：{0}。",
    # cli/main
    "Usage: megatron-patch COMMAND --flag=value ...": "用法：megatron-patch 命令 --标志=值 ...",
    "megatron-patch COMMAND --help lists its arguments and flags; --version prints the version.": (
        "megatron-patch 命令 --help 列出其参数和标志；--version 打印版本。"
    ),
    "got {}": "收到 {0}",
    "got no command": "没有命令",
    "megatron-patch: {}; write one of {}.": "megatron-patch：{0}；可写 {1} 之一。",
    "  the evaluation of iteration {}, before whose end a signal came, is made now": (
        "  第 {0} 次迭代的评估因收到信号而未做完，现在补做"
    ),
    "  warning: a step and a save take longer than --exit-grace-seconds {}, so a signal would end the run without a checkpoint: "
    "write --exit-grace-seconds {}, and have the platform wait as long.": (
        "  警告：一步训练加保存所需的时间超过 --exit-grace-seconds {0}，收到信号时会来不及保存：请写 --exit-grace-seconds {1}，"
        "并让平台等待同样久。"
    ),
    # health, saves, start; files that the system refuses
    "lines of the log are missing in the file": "日志文件中缺少一些行",
    "{} gets nothing more of this run's numbers": "{0} 不再收到本次运行的数据",
    "warning: {} ({}).": "警告：{0}（{1}）。",
    "warning: the profile is not written ({}).": "警告：没有写出 profile（{0}）。",
    "measurements of matrix products are not kept for the next start ({}).": "矩阵乘法的测量结果没有为下次启动保留（{0}）。",
    "The processes do not see the same checkpoint in {}: rank 0 finds {}, {}. Every node must see one OUTPUT_BASEPATH: name a folder "
    "that all of them share.": (
        "各进程在 {0} 中看到的检查点不同：rank 0 找到 {1}，{2}。所有节点必须看到同一个 OUTPUT_BASEPATH：请写一个共享的文件夹。"
    ),
    "rank {} finds {}": "rank {0} 找到 {1}",
    "as asked.": "按要求停止。",
    "Samples of the training data, counted from 0: {}": "训练数据中的样本（从 0 数起）：{0}",
    "{}{} in iteration {}": "第 {2} 次迭代：{0}{1}",
    "The last good checkpoint is {}.": "最后一个完好的检查点是 {0}。",
    "The run has no checkpoint in {}.": "{0} 中没有这次运行的检查点。",
    "The last {} iterations, up to {}, were": "到第 {1} 次为止的最后 {0} 次迭代",
    "Iteration {} was": "第 {0} 次迭代",
    "{} not finite (loss or gradient was NaN or infinite), and changed no weight; the learning rate was {}. {}. {} Look at these "
    "samples; write a lower LR, a longer warm-up or PR bf16 to go on from there, or allow more by --max-consecutive-skips.": (
        "{0}不是有限值（loss 或梯度是 NaN 或无穷），没有改变权重；学习率是 {1}。{2}。{3}请查看这些样本；降低 LR、加长 warmup 或用 "
        "PR bf16，再从那里继续，或用 --max-consecutive-skips 允许更多次。"
    ),
    "iteration {}: the loss leapt to {}; over the last {} iterations its median was {}, and {} above that is usual noise.": (
        "第 {0} 次迭代：loss 跳到 {1}；最近 {2} 次的中位数是 {3}，高出 {4} 以内属于正常波动。"
    ),
    "iteration {} is not saved: {} holds a NaN or an infinity, which no further step mends. {}": (
        "第 {0} 次迭代没有保存：{1} 含有 NaN 或无穷，之后的步骤无法修复。{2}"
    ),
    "the size of {} cannot be told ({}); the checkpoint is complete.": "无法得知 {0} 的大小（{1}）；检查点是完整的。",
    "iteration {} could not be saved ({}). {}": "第 {0} 次迭代未能保存（{1}）。{2}",
    "{} The next save is tried as usual.": "{0}下一次保存照常再试。",
}
