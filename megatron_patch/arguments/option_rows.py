"""Flags behind a training script's documented arguments, from the fields of `config.Options`. Imports no torch.

A flag takes name, kind, default and English meaning from its field. The rows here add its range and its Chinese
meaning.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron_patch.arguments.argument import WHOLE_MOST, Argument, Kind, Range, flagged
from megatron_patch.config import Options
from megatron_patch.formats.peft_adapter import MOST_RANK

_KINDS: dict[type, Kind] = {int: "whole", float: "number", bool: "boolean", str: "text"}


def _docstrings(cls: type) -> dict[str, str]:
    """Field → the text below it in the source of a class. Python itself does not keep these texts."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for one, behind in zip(tree.body, tree.body[1:]):
        if not (isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)):
            continue
        if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
            found[one.target.id] = " ".join(str(behind.value.value).split())
    return found


_FIELDS = {one.name: one for one in fields(Options)}
_HINTS = get_type_hints(Options)
_ENGLISH = _docstrings(Options)


def _option(name: str, zh: str, kind: Kind | None = None, **bounds: Any) -> Argument:
    """The flag of a field of Options. `bounds` are those of a Range; without `most` a whole number may have 31 bits."""
    flag, hint, default = "--" + name.replace("_", "-"), _HINTS[name], _FIELDS[name].default
    assert default is not MISSING
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    found: Kind = kind or ("choice" if choices else _KINDS[hint])
    if found == "whole":
        bounds.setdefault("most", WHOLE_MOST)
    return flagged(flag, found, zh, _ENGLISH[name], range=Range(**bounds), choices=choices, default=default)


# In the order of Options' fields, apart from those below, which not every script has.
SHARED = (
    _option("seed", "随机初始权重和数据顺序的种子"),
    _option("weight_decay", "解耦的权重衰减；norm 不衰减"),
    _option("adam_beta1", "Adam 一阶矩的衰减率", most=1, below=True),
    _option("adam_beta2", "Adam 二阶矩的衰减率", most=1, below=True),
    _option("adam_eps", "Adam 分母中的加数", above=True),
    _option("clip_grad", "梯度的全局 L2 范数上限；0 不裁剪"),
    _option("init_method_std", "随机初始权重的标准差（检查点为 none 时）", above=True),
    _option("initial_loss_scale", "fp16 的初始 loss scale", least=1),
    _option("loss_scale_window", "fp16：连续多少步没有溢出后 loss scale 加倍", least=1),
    _option("fp8_layers", "fp8：模型开头和末尾各有这么多层的矩阵乘法保持 bf16", most=10_000),
    _option("log_interval", "两行日志之间的迭代数", least=1),
    _option("progress", "终端中用一行实时进度（迭代、loss、tokens/s、剩余时间）代替 Megatron 的日志行，后者写入日志文件；"
            "auto：在终端中且不在 notebook 中时"),
    _option("wandb_project", "同时把运行记录到 Weights & Biases 的这个项目；WANDB_* 环境变量照常有效"),
    _option("swanlab_project", "同时把运行记录到 SwanLab 的这个项目；SWANLAB_* 环境变量照常有效"),
    _option("mlflow_experiment", "同时把运行记录到 MLflow 的这个实验，服务器由 MLFLOW_TRACKING_URI 指定；"
            "未设置时写入 OUTPUT_BASEPATH 下的 mlflow.db"),
    _option("num_workers", "每个 rank 读取数据的进程数；0 表示在训练进程中读取", most=512),
    _option("resume_from", "从另一个 NAME 的训练检查点继续：OUTPUT_BASEPATH/checkpoint 中某次运行或其中某次迭代的文件夹", "path"),
    _option("keep_last", "保留的训练检查点个数；0 全部保留。用 --save-best 时另外保留验证 loss 最低的一个"),
    _option("save_best", "保留验证 loss 最低的检查点，best_checkpointed_iteration.txt 指明是哪一个"),
    _option("early_stopping_patience", "连续这么多次评估验证 loss 都没有更低时结束运行；0 不结束"),
    _option("save_weights_only", "检查点只保存权重（bf16 时大小为七分之一）：可作为起点，但不能从它继续训练"),
    _option("local_output", "OUTPUT_BASEPATH 在各节点自己的磁盘上：每个节点保存自己各 rank 的检查点文件，由同样的节点继续训练"),
    _option("async_save", "由单独的进程在训练的同时写检查点；auto：有 GPU 且主机内存放得下状态时"),
    _option("fail_on_save_error", "检查点保存失败时结束运行；否则到下一个保存间隔再试"),
    _option("max_consecutive_skips", "连续这么多次迭代非有限值时结束运行（不计 fp16 最初寻找 loss scale）；0 不结束"),
    _option("exit_interval", "本次运行迭代这么多次后保存并停止；0 不停止"),
    _option("exit_duration_in_mins", "运行这么多分钟后保存并停止；0 不停止"),
    _option("tokenizer_path", "分词器文件夹；空：检查点的文件夹", "path"),
    _option("tokenizer_engine", "JSON 数据：读取文本的库；reference：SentencePiece（tokenizer.json 用 tokenizers）；"
            "auto：文件较大且 fastokens 结果相同时用它"),
    _option("gqa_layout", "2023 年的分组查询检查点中 QKV 行的顺序（文件本身无法判断时）；"
            "all-q-first：原项目 2023-10-18 至 2023-11-09 的转换结果"),
    _option("template", "JSON 数据：提示模板；auto 同原项目，微调为 alpaca，预训练为 pretrain"),
    _option("max_bad_fraction", "JSON 数据：允许不可用记录的比例；它们列入报告并略过", most=1),
    _option("packing", "JSON 数据：把多个样本放进一条 SEQ_LEN 长的序列，注意力互不可见"),
    _option("allow_longer_sequences", "允许比模型 max_position_embeddings 更长的序列，并把新上限写入 config.json"),
    _option("kernels", "auto：GPU 上用 Triton 内核；torch：用 PyTorch 参考实现"),
    _option("cuda_graphs", "条件允许时把 micro-batch 录成 CUDA graph 重放；不行时日志说明原因"),
    _option("pair_micro_batches", "使用 CUDA graph 时，若一步的 micro-batch 为偶数且显存足够，一次跑两个；"
            "两个不足 8,192 token 时跑四个"),
    _option("peer_copies", "同一台机器的 GPU 之间，TP（SP true）与 ZeRO 的通信由拷贝引擎完成，不占用计算单元"),
    _option("lora_rank", "训练该秩的 LoRA 适配器并冻结模型权重；0 训练全部权重", most=MOST_RANK),
    _option("lora_alpha", "LoRA：适配器输出乘以该值 / 秩；0：秩的两倍，与 PEFT 的示例相同", most=1_000_000),
    _option("lora_dropout", "LoRA：训练时丢弃适配器输入元素的概率", most=1, below=True),
    _option("lora_plus_ratio", "LoRA+：每个适配器的 B 的学习率是 LR 乘以该值，A 仍用 LR", least=1, most=1_000_000),
    _option("lora_targets", "LoRA：带适配器的线性层（Hugging Face 名称，如 q_proj,v_proj）；空：全部七个"),
    _option("lora_vocabulary", "LoRA：同时完整训练词嵌入和输出层（PEFT 的 modules_to_save）；EXTRA_VOCAB_SIZE > 0 时总是如此"),
    _option("lora_adapter", "LoRA：从该文件夹中的适配器开始（由 PEFT 或本项目保存），秩、alpha 和层以它为准", "path"),
    _option("qlora", "LoRA：冻结的线性层以 4 位保存（NF4，双重量化，与 bitsandbytes 相同）"),
    _option("profile", "为 TensorBoard 记录若干迭代的 PyTorch profiler 轨迹"),
    _option("profile_step_start", "本次运行中第一个被记录的迭代", least=1, most=WHOLE_MOST - 2),
    _option("profile_step_end", "记录到此迭代为止，它本身不记录", least=2),
    _option("exit_grace_seconds", "收到 SIGTERM 或 Ctrl-C 后，完成当前一步并保存检查点的最长秒数，之后终止进程",
            least=1, most=86_400),
    _option("rendezvous_timeout_minutes", "多个节点启动时互相等待的最长分钟数", above=True, most=1_000_000),
    _option("distributed_timeout_minutes", "有进程停滞这么多分钟后结束运行，并指出是哪个进程、停在哪里", above=True,
            most=1_000_000),
)  # fmt: skip
# Read by the launcher alone: no field of Options, and of no run's record.
LAUNCHER = (
    flagged("--dry-run", "boolean", "只打印布局、显存、步数与解析后的配置，然后结束", default=False,
            en="Print layout, memory, steps and the resolved configuration, and end."),
)  # fmt: skip
SPLIT = (_option("split", "索引数据或 JSON 数据中训练、验证、测试的份额"),)
EVALUATION = (
    _option("eval_interval", "两次评估之间的迭代数；0 不评估"),
    _option("eval_iters", "一次评估的全局 batch 数", least=1),
)
ACCUMULATION = (
    _option("gradient_accumulation_steps", "每个数据并行 rank 在一次迭代中累积的 micro-batch 数", least=1, most=1_000_000),
)
