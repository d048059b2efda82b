"""The documented arguments that scripts of runs share, by name. A script's list is a line of these names. No torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import Argument, Range, documented
from megatron_patch.config import PRECISIONS, RECOMPUTATIONS
from megatron_patch.llama.model_config import TRAINING_SIZES

_ONE = Range(1)
_ROWS = (
    documented("ENV", "--env", "choice", "运行环境: dlc, dsw", choices=("dsw", "dlc"), example="dsw",
               en="Where the run is: dsw is one machine, dlc a job of PAI DLC or Kubeflow, whose environment names the nodes."),
    documented("MEGATRON_PATH", "--megatron-path", "path", "设置开源Megatron的代码路径", example="/root/Megatron-LM-230512",
               en="A Megatron-LM source tree, used if its version is supported; else pip's megatron-core is, as a line says."),
    documented("MEGATRON_PATCH_PATH", "--megatron-patch-path", "path", "设置Megatron Patch的代码路径",
               en="This project's folder, whose code then runs."),
    documented("MODEL_SIZE", "--model-size", "choice", "模型结构参数量级: 7B, 13B", choices=(*TRAINING_SIZES, "auto"),
               example="7B", en="Size of the model; auto: what the checkpoint's config.json says."),
    documented("BATCH_SIZE", "--micro-batch-size", "whole", "每卡训练一次迭代样本数: 4, 8", range=_ONE, example="1",
               en="Samples of one micro-batch on one GPU."),
    documented("GLOBAL_BATCH_SIZE", "--global-batch-size", "whole", "全局batch size", range=_ONE, example="8",
               en="Samples of one iteration over all GPUs: a multiple of BATCH_SIZE × data-parallel size."),
    documented("LR", "--lr", "number", "学习率: 1e-5, 5e-5", example="1e-5",
               en="Highest learning rate, at the end of the warm-up."),
    documented("MIN_LR", "--min-lr", "number", "最小学习率: 1e-6, 5e-6", example="1e-6",
               en="Learning rate that the decay ends at; not above LR."),
    documented("SEQ_LEN", "--seq-length", "whole", "序列长度", range=_ONE, example="2048",
               en="Tokens of a sample. JSON data without packing: the most that PAD_LEN may be."),
    documented("PAD_LEN", "--max-padding-length", "whole", "Padding长度：100", range=_ONE, example="80",
               en="JSON data: tokens that every sample is padded or cut to, at least 2. Indexed data does not use it."),
    documented("EXTRA_VOCAB_SIZE", "--extra-vocab-size", "whole", "词表扩充大小", example="0",
               en="Rows of embedding and output layer beyond the vocabulary of config.json."),
    documented("PR", "--precision", "choice", "训练精度: fp16, bf16", choices=PRECISIONS, example="bf16",
               en="Precision of the training; fp16 has a dynamic loss scale, fp32 is for CPUs and for debugging; fp8 is bf16 "
               "with the layers' products in FP8."),
    documented("TP", "--tensor-model-parallel-size", "whole", "模型并行度", range=_ONE, example="1",
               en="GPUs that share each layer: divides attention heads, KV groups and the feed-forward layer's rows."),
    documented("PP", "--pipeline-model-parallel-size", "whole", "流水并行度", range=_ONE, example="1",
               en="Stages that the layers are parted into: divides their number."),
    documented("AC", "--activation-checkpoint", "choice", "激活检查点模式: sel, full", choices=RECOMPUTATIONS, example="sel",
               en="What the backward pass computes again: sel the attention's core, full whole layers, none nothing."),
    documented("DO", "--use-distributed-optimizer", "boolean", "是否使用Megatron版Zero-1降显存优化器: true, false",
               example="true", en="ZeRO-1: Adam's state is split over the data-parallel ranks."),
    documented("FL", "--use-flash-attn", "boolean", "是否使用Flash Attention: true, false", example="true",
               en="true: the fastest fused attention that the machine has; false: unfused attention."),
    documented("SP", "--sequence-parallel", "boolean", "是否使用序列并行: true, false", example="false",
               en="Sequence parallelism: norms are split over the tensor-parallel ranks by position. Nothing with TP 1."),
    documented("TE", "--transformer-engine", "boolean", "是否使用Transformer Engine: true, false", example="false",
               en="Changes nothing: this project's kernels do what Transformer Engine would."),
    documented("SAVE_INTERVAL", "--save-interval", "whole", "保存ckpt的间隔", range=_ONE, example="100000",
               en="Iterations between two checkpoints."),
    documented("DATASET_PATH", "--data-path", "data", "训练数据集路径",
               en="The prefix of a .bin/.idx pair, several as `weight prefix weight prefix …` in one, or JSON files."),
    documented("TRAIN_DATASET_PATH", "--train-data-path", "json", "训练数据集路径",
               en="JSON of records with instruction, optional input, and output or content; several as `a b` or, with the "
                  "share of each in an epoch, `0.7 a 0.3 b`."),
    documented("VALID_DATASET_PATH", "--valid-data-path", "json", "验证数据集路径",
               en="The same for validation, over the whole of which each epoch ends; of several, `a b`, each has its loss."),
    documented("PRETRAIN_CHECKPOINT_PATH", "--load", "path", "预训练模型路径",
               en="A converted checkpoint, a training checkpoint or one of 2023, at any TP and PP; none: random weights."),
    documented("TRAIN_TOKENS", "--train-tokens", "whole", "训练token数", range=_ONE, example="100000000",
               en="Tokens of the whole training; iterations are TRAIN_TOKENS ÷ GLOBAL_BATCH_SIZE ÷ SEQ_LEN."),
    documented("WARMUP_TOKENS", "--warmup-tokens", "whole", "预热token数", example="10000",
               en="Tokens over which the learning rate rises to LR; below TRAIN_TOKENS."),
    documented("EPOCH", "--epochs", "whole", "训练迭代轮次", range=_ONE, example="2",
               en="Passes over the training data."),
    documented("TRAIN_ITERS", "--train-iters", "whole", "训练steps数", range=_ONE, example="1000",
               en="Iterations of the whole training, each over GLOBAL_BATCH_SIZE samples; the data is passed over as often."),
    documented("WARMUP_ITERS", "--warmup-iters", "whole", "预热steps数", example="10",
               en="Iterations over which the learning rate rises to LR. It is at MIN_LR so many iterations before the end."),
    documented("OUTPUT_BASEPATH", "--output-path", "path", "训练输出文件路径",
               en="The folder of checkpoint/, tensorboard/ and log/; it is made where it does not exist."),
)  # fmt: skip
ROWS: dict[str, Argument] = {row.name: row for row in _ROWS}


def rows(names: str) -> tuple[Argument, ...]:
    """The rows of these names, which stand between blanks, in their order."""
    return tuple(ROWS[name] for name in names.split())
