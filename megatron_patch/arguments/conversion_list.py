"""The converter's list. Imports no torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import Range, Script, documented, flagged, numbered
from megatron_patch.arguments.documented_rows import rows
from megatron_patch.config import ALL_Q_FIRST, PER_KV_HEAD
from megatron_patch.formats.dtypes import WEIGHT_NAMES
from megatron_patch.llama.model_config import LLAMA_SIZES

DEFAULT_FILE_BYTES = 5 * 10**9
_NAMES = (*LLAMA_SIZES, "auto")


CONVERT = Script(
    name="model_convertor.sh",
    path="toolkits/model_checkpoints_convertor/llama/model_convertor.sh",
    zh="模型格式转换（双向）",
    en="model conversion, both ways",
    documented=numbered(
        *rows("MEGATRON_PATH"),
        documented("SOURCE_CKPT_PATH", "--source", "path", "原始模型路径: huggingface文件夹, 或megatron checkpoint",
                   en="A Hugging Face folder or Meta's; with mg2hf true a Megatron checkpoint, or one iteration's folder in it."),
        documented("TARGET_CKPT_PATH", "--target", "path", "转换后的模型路径",
                   en="A folder that does not exist yet or is empty."),
        documented("TP", "--tensor-model-parallel-size", "whole", "模型并行度", range=Range(1), example="1",
                   en="Checked and recorded; the written checkpoint loads at any TP."),
        documented("PP", "--pipeline-model-parallel-size", "whole", "流水并行度", range=Range(1), example="1",
                   en="Checked and recorded; the written checkpoint loads at any PP."),
        documented("MN", "--model-name", "choice", f"模型名称: {', '.join(_NAMES)}", choices=_NAMES, example="llama-7b",
                   en="Name of the model; auto: what the source says."),
        documented("EXTRA_VOCAB_SIZE", "--extra-vocab-size", "whole", "词表扩充大小", example="0",
                   en="Rows that are added to embedding and output layer."),
        documented("mg2hf", "--mg2hf", "boolean", "是否为megatron转huggingface: true, false", example="false",
                   en="false: Hugging Face → Megatron; true: Megatron → Hugging Face."),
    ),
    flags=(
        flagged("--dtype", "choice", "写出权重的数据类型；不写则与源相同", choices=WEIGHT_NAMES,
                en="Dtype of the written weights; without it, the source's."),
        flagged("--overwrite", "boolean", "替换目标文件夹中的模型", default=False,
                en="Replace the model that is in the target folder."),
        flagged("--verify", "boolean", "重新读取两边并逐个比较张量", default=False,
                en="Read both sides again and compare every tensor."),
        flagged("--verify-logits", "boolean", "与 transformers 在 CPU 上以 fp32 比较一次前向计算", default=False,
                en="Compare a forward pass with transformers', in fp32 on the CPU."),
        flagged("--max-shard-size", "size", "单个文件的最大大小", default=DEFAULT_FILE_BYTES,
                en="Most bytes of one file; 5GB, 500MB."),
        flagged("--base", "path", "源是适配器（LoRA）时：它所基于的模型；不写则取 adapter_config.json 中写的文件夹",
                en="Where the source is an adapter (LoRA): the model that it was made over; without it, the folder that "
                "adapter_config.json names."),
        flagged("--adapter-only", "boolean", "只写出 LoRA 训练检查点中的适配器（PEFT 格式），不与基础模型合并", default=False,
                en="Write the adapter of a LoRA run's checkpoint alone, as PEFT does, and merge nothing."),
        flagged("--gqa-layout", "choice", "2023 年的分组查询检查点（包括适配器所基于的）中 QKV 行的顺序（文件本身无法判断时）；"
                "all-q-first：原项目 2023-10-18 至 2023-11-09 的转换结果；不写则取 LoRA 训练所记录的，否则为 per-kv-head",
                choices=(PER_KV_HEAD, ALL_Q_FIRST),
                en="Order of QKV rows in a grouped-query checkpoint of 2023, also one under an adapter, whose files do not tell "
                "it; all-q-first: what the original converted from 2023-10-18 to 2023-11-09. Without it, what a LoRA run "
                "recorded, else per-kv-head."),
    ),
)  # fmt: skip
