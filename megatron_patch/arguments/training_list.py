"""The lists of the two training scripts. Imports no torch.

A flag's name, kind, default and English meaning are those of its field in `config.Options`; the rows here add range and Chinese.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron_patch.arguments.argument import WHOLE_MOST, Argument, Kind, Range, Script, numbered
from megatron_patch.config import PRECISIONS, RECOMPUTATIONS, Options
from megatron_patch.llama.model_config import TRAINING_SIZES

_KINDS: dict[type, Kind] = {int: "whole", float: "number", bool: "boolean", str: "text"}


def _argument(name: str, flag: str, kind: Kind, zh: str, en: str, **more: Any) -> Argument:
    return Argument(name, flag, kind, zh, en, required=True, **more)


def _docstrings(cls: type) -> dict[str, str]:
    """The texts that stand below the fields of a class, by field; Python keeps none of them at run time."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for one, behind in zip(tree.body, tree.body[1:]):
        is_text = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and is_text:
            found[one.target.id] = " ".join(str(behind.value.value).split())
    return found


_FIELDS = {one.name: one for one in fields(Options)}
_HINTS = get_type_hints(Options)
_ENGLISH = _docstrings(Options)


def _option(name: str, zh: str, kind: Kind | None = None, **bounds: Any) -> Argument:
    """The flag of a field of Options; `bounds` are a Range's. Whole numbers end at 31 bits unless they say otherwise."""
    flag, hint, default = "--" + name.replace("_", "-"), _HINTS[name], _FIELDS[name].default
    assert default is not MISSING
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    found: Kind = kind or ("choice" if choices else _KINDS[hint])
    if found == "whole":
        bounds.setdefault("most", WHOLE_MOST)
    return Argument(flag, flag, found, zh, _ENGLISH[name], range=Range(**bounds), choices=choices, default=default)


_HEAD = (
    _argument("ENV", "--env", "choice", "运行环境: dlc, dsw", choices=("dsw", "dlc"),
              en="Where the run is: dsw is one machine, dlc a job of PAI DLC or Kubeflow, whose environment names the nodes."),
    _argument("MEGATRON_PATH", "--megatron-path", "path", "设置开源Megatron的代码路径",
              en="A Megatron-LM source tree. One of a supported version is used; else pip's megatron-core, and a line says so."),
    _argument("MEGATRON_PATCH_PATH", "--megatron-patch-path", "path", "设置Megatron Patch的代码路径",
              en="This project's folder, whose code then runs."),
    _argument("MODEL_SIZE", "--model-size", "choice", "模型结构参数量级: 7B, 13B", choices=(*TRAINING_SIZES, "auto"),
              en="Size of the model; auto: what the checkpoint's config.json says."),
    _argument("BATCH_SIZE", "--micro-batch-size", "whole", "每卡训练一次迭代样本数: 4, 8", range=Range(1),
              en="Samples of one micro-batch on one GPU."),
)  # fmt: skip
_GLOBAL_BATCH = _argument(
    "GLOBAL_BATCH_SIZE", "--global-batch-size", "whole", "全局batch size", range=Range(1),
    en="Samples of one iteration over all GPUs: a multiple of BATCH_SIZE × data-parallel size.",
)  # fmt: skip
_LENGTHS = (
    _argument("LR", "--lr", "number", "学习率: 1e-5, 5e-5", example="1e-5",
              en="Highest learning rate, at the end of the warm-up."),
    _argument("MIN_LR", "--min-lr", "number", "最小学习率: 1e-6, 5e-6", example="1e-6",
              en="Learning rate that the decay ends at; not above LR."),
    _argument("SEQ_LEN", "--seq-length", "whole", "序列长度", range=Range(1),
              en="Tokens of a sample. JSON data without packing: the most that PAD_LEN may be."),
    _argument("PAD_LEN", "--max-padding-length", "whole", "Padding长度：100", range=Range(1),
              en="JSON data: tokens that every sample is padded or cut to, at least 2. Indexed data does not use it."),
    _argument("EXTRA_VOCAB_SIZE", "--extra-vocab-size", "whole", "词表扩充大小",
              en="Rows of embedding and output layer beyond the vocabulary of config.json."),
)  # fmt: skip
_SWITCHES = (
    _argument("PR", "--precision", "choice", "训练精度: fp16, bf16", choices=PRECISIONS,
              en="Precision of the training; fp16 has a dynamic loss scale, fp32 is for CPUs and for debugging."),
    _argument("TP", "--tensor-model-parallel-size", "whole", "模型并行度", range=Range(1),
              en="GPUs that share each layer: divides attention heads, KV groups and the feed-forward layer's rows."),
    _argument("PP", "--pipeline-model-parallel-size", "whole", "流水并行度", range=Range(1),
              en="Stages that the layers are parted into: divides their number."),
    _argument("AC", "--activation-checkpoint", "choice", "激活检查点模式: sel, full", choices=RECOMPUTATIONS,
              en="What the backward pass computes again: sel the attention's core, full whole layers."),
    _argument("DO", "--use-distributed-optimizer", "boolean", "是否使用Megatron版Zero-1降显存优化器: true, false",
              en="ZeRO-1: Adam's state is split over the data-parallel ranks."),
    _argument("FL", "--use-flash-attn", "boolean", "是否使用Flash Attention: true, false",
              en="true: the fastest fused attention that the machine has; false: unfused attention."),
    _argument("SP", "--sequence-parallel", "boolean", "是否使用序列并行: true, false",
              en="Sequence parallelism: norms are split over the tensor-parallel ranks by position. Nothing with TP 1."),
)  # fmt: skip
_LOAD = _argument(
    "PRETRAIN_CHECKPOINT_PATH", "--load", "path", "预训练模型路径",
    en="A converted checkpoint, a training checkpoint or one of 2023, at any TP and PP; none: random weights.",
)  # fmt: skip
_OUTPUT = _argument(
    "OUTPUT_BASEPATH", "--output-path", "path", "训练输出文件路径",
    en="The folder of checkpoint/, tensorboard/ and log/; it is made where it does not exist.",
)  # fmt: skip

# In the order of Options' fields, apart from those of one script below.
_FLAGS = (
    _option("seed", "随机初始权重和数据顺序的种子"),
    _option("weight_decay", "解耦的权重衰减；norm 不衰减"),
    _option("adam_beta1", "Adam 一阶矩的衰减率", most=1, below=True),
    _option("adam_beta2", "Adam 二阶矩的衰减率", most=1, below=True),
    _option("adam_eps", "Adam 分母中的加数", above=True),
    _option("clip_grad", "梯度的全局 L2 范数上限；0 不裁剪"),
    _option("init_method_std", "随机初始权重的标准差（检查点为 none 时）", above=True),
    _option("initial_loss_scale", "fp16 的初始 loss scale", least=1),
    _option("loss_scale_window", "fp16：连续多少步没有溢出后 loss scale 加倍", least=1),
    _option("log_interval", "两行日志之间的迭代数", least=1),
    _option("num_workers", "每个 rank 读取数据的进程数；0 表示在训练进程中读取", most=512),
    _option("resume_from", "从另一个 NAME 的训练检查点继续：OUTPUT_BASEPATH/checkpoint 中某次运行或其中某次迭代的文件夹", "path"),
    _option("keep_last", "保留的训练检查点个数；0 全部保留"),
    _option("exit_interval", "本次运行迭代这么多次后保存并停止；0 不停止"),
    _option("exit_duration_in_mins", "运行这么多分钟后保存并停止；0 不停止"),
    _option("tokenizer_path", "分词器文件夹；空：检查点的文件夹", "path"),
    _option("gqa_layout", "2023 年的分组查询检查点中 QKV 行的顺序（文件本身无法判断时）；"
            "all-q-first：原项目 2023-10-18 至 2023-11-09 的转换结果"),
    _option("template", "JSON 数据：提示模板；auto 同原项目，微调为 alpaca，预训练为 pretrain"),
    _option("max_bad_fraction", "JSON 数据：允许不可用记录的比例；它们列入报告并略过", most=1),
    _option("packing", "JSON 数据：把多个样本放进一条 SEQ_LEN 长的序列，注意力互不可见"),
    _option("allow_longer_sequences", "允许比模型 max_position_embeddings 更长的序列，并把新上限写入 config.json"),
    _option("kernels", "auto：GPU 上用 Triton 内核；torch：用 PyTorch 参考实现"),
    _option("cuda_graphs", "条件允许时把 micro-batch 录成 CUDA graph 重放；不行时日志说明原因"),
    _option("pair_micro_batches", "使用 CUDA graph 时，若一步的 micro-batch 为偶数且显存足够，一次跑两个"),
    _option("profile", "为 TensorBoard 记录若干迭代的 PyTorch profiler 轨迹"),
    _option("profile_step_start", "本次运行中第一个被记录的迭代", least=1),
    _option("profile_step_end", "记录到此迭代为止，它本身不记录", least=2),
    _option("timeout_minutes", "集合通信等待其他进程的最长分钟数", least=1, most=1_000_000),
)  # fmt: skip
_PRETRAIN_ONLY = (
    _option("split", "索引数据或 JSON 数据中训练、验证、测试的份额"),
    _option("eval_interval", "两次评估之间的迭代数；0 不评估"),
    _option("eval_iters", "一次评估的全局 batch 数", least=1),
)
_FINETUNE_ONLY = (
    _option("gradient_accumulation_steps", "每个数据并行 rank 在一次迭代中累积的 micro-batch 数", least=1, most=1_000_000),
)

PRETRAIN = Script(
    name="run_pretrain_megatron_llama.sh",
    path="examples/llama2/run_pretrain_megatron_llama.sh",
    zh="继续预训练 LLaMA-2",
    en="continued pre-training of LLaMA-2",
    documented=numbered(
        *_HEAD,
        _GLOBAL_BATCH,
        *_LENGTHS,
        *_SWITCHES,
        _argument("SAVE_INTERVAL", "--save-interval", "whole", "保存ckpt的间隔", range=Range(1),
                  en="Iterations between two checkpoints."),
        _argument("DATASET_PATH", "--data-path", "data", "训练数据集路径",
                  en="The prefix of a .bin/.idx pair, several as `weight prefix weight prefix …` in one, or a JSON file."),
        _LOAD,
        _argument("TRAIN_TOKENS", "--train-tokens", "whole", "训练token数", range=Range(1),
                  en="Tokens of the whole training; iterations are TRAIN_TOKENS ÷ GLOBAL_BATCH_SIZE ÷ SEQ_LEN."),
        _argument("WARMUP_TOKENS", "--warmup-tokens", "whole", "预热token数",
                  en="Tokens over which the learning rate rises to LR; below TRAIN_TOKENS."),
        _OUTPUT,
    ),
    flags=(*_FLAGS, *_PRETRAIN_ONLY),
    others=_FINETUNE_ONLY,
)  # fmt: skip

FINETUNE = Script(
    name="run_finetune_megatron_llama.sh",
    path="examples/llama2/run_finetune_megatron_llama.sh",
    zh="有监督微调 LLaMA-2",
    en="supervised fine-tuning of LLaMA-2",
    documented=numbered(
        *_HEAD,
        *_LENGTHS,
        *_SWITCHES,
        _argument("TRAIN_DATASET_PATH", "--train-data-path", "data", "训练数据集路径",
                  en="A JSON list or JSON Lines of records with instruction, optional input, and output or content."),
        _argument("VALID_DATASET_PATH", "--valid-data-path", "data", "验证数据集路径",
                  en="The same for validation, over the whole of which each epoch ends."),
        _LOAD,
        _argument("EPOCH", "--epochs", "whole", "训练迭代轮次", range=Range(1), en="Passes over the training file."),
        _OUTPUT,
    ),
    flags=(*_FLAGS, *_FINETUNE_ONLY),
    others=_PRETRAIN_ONLY,
)  # fmt: skip
