"""The list of `megatron-patch plan`. Imports no torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import Argument, Range, Script, flagged
from megatron_patch.config import PRECISIONS, RECOMPUTATIONS
from megatron_patch.formats.peft_adapter import MOST_RANK
from megatron_patch.llama.model_config import TRAINING_SIZES
from megatron_patch.plan.fitting import GPUS

_ONE = Range(1)
_MODEL = Argument(
    "MODEL", "", "text", "7B、13B、70B、tiny，或含 config.json 的文件夹", required=True,
    en=f"{', '.join(TRAINING_SIZES)}, or a folder with a config.json.",
)  # fmt: skip

PLAN = Script(
    name="megatron-patch plan",
    path="",
    zh="训练前估算显存、速度与通信",
    en="GPU memory, speed and traffic of a training, on paper",
    documented=(_MODEL,),
    flags=(
        flagged("--gpu", "choice", "GPU 型号；不写则为本机的 GPU，本机没有时为 h200", choices=tuple(GPUS),
                en="Kind of GPU; without it this machine's, and h200 where there is none."),
        flagged("--gpus", "whole", "每个节点的 GPU 数；不写则为 1，或本机可见的 GPU 数", range=_ONE,
                en="GPUs of a node; without it 1, or those of this machine."),
        flagged("--nodes", "whole", "节点数", range=_ONE, default=1, en="Nodes."),
        flagged("--micro-batch-size", "whole", "BATCH_SIZE", range=_ONE, default=1, en="BATCH_SIZE."),
        flagged("--global-batch-size", "whole", "GLOBAL_BATCH_SIZE；不写则每个副本 8 个 micro-batch", range=_ONE,
                en="GLOBAL_BATCH_SIZE; without it, eight micro-batches for each replica."),
        flagged("--seq-length", "whole", "SEQ_LEN", range=_ONE, default=2048, en="SEQ_LEN; PAD_LEN for JSON data."),
        flagged("--extra-vocab-size", "whole", "EXTRA_VOCAB_SIZE", default=0, en="EXTRA_VOCAB_SIZE."),
        flagged("--precision", "choice", "PR", choices=PRECISIONS, default="bf16", en="PR."),
        flagged("--tensor-model-parallel-size", "whole", "TP", range=_ONE, default=1, en="TP."),
        flagged("--pipeline-model-parallel-size", "whole", "PP", range=_ONE, default=1, en="PP."),
        flagged("--activation-checkpoint", "choice", "AC", choices=RECOMPUTATIONS, default="sel", en="AC."),
        flagged("--use-distributed-optimizer", "boolean", "DO", default=True, en="DO."),
        flagged("--use-flash-attn", "boolean", "FL", default=True, en="FL."),
        flagged("--lora-rank", "whole", "所有线性层上该秩的 LoRA；0 训练全部权重", range=Range(most=MOST_RANK), default=0,
                en="LoRA of this rank on all linear layers; 0 trains all weights."),
        flagged("--qlora", "boolean", "LoRA：冻结的线性层以 4 位保存", default=False,
                en="LoRA over linear layers in 4 bits."),
        flagged("--fp8-layers", "whole", "fp8：模型开头和末尾各有这么多层的矩阵乘法保持 bf16", range=Range(most=10_000),
                default=0, en="With fp8, layers at either end of the model whose products stay in bf16."),
        flagged("--allow-longer-sequences", "boolean", "允许比模型 max_position_embeddings 更长的序列", default=False,
                en="Whether SEQ_LEN may be above the model's max_position_embeddings."),
        flagged("--sequence-parallel", "boolean", "SP", default=True, en="SP; nothing with TP 1."),
    ),
)  # fmt: skip
