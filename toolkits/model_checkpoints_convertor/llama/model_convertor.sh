#!/bin/sh
# 模型格式转换 (model conversion, both ways). Usage: sh model_convertor.sh, then the 8 arguments below.
# Flags after them: --dtype bfloat16|float16|float32, --verify, --verify-logits, --overwrite, --max-shard-size 5GB,
# --base FOLDER, --adapter-only.
if grep -ls "$(printf '\r')" "$0" "$(dirname -- "$0")/../../../megatron_patch/launch.sh" >&2; then  # Windows line ends:
    printf '%s\n' "has lines that end as on Windows, which no shell reads; sed -i 's/\\r\$//' FILE mends that." >&2  # each of these
    exit 2  # lines then ends in a carriage return,
fi  # which these comments take.
set -eu
patch_root=$(CDPATH='' cd -- "$(dirname -- "$0")/../../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../../../megatron_patch/launch.sh
. "$patch_root/megatron_patch/launch.sh"
check_count 8 "$@"

MEGATRON_PATH=$1     # 设置开源Megatron的代码路径
SOURCE_CKPT_PATH=$2  # 原始模型路径: huggingface文件夹, 或megatron checkpoint
TARGET_CKPT_PATH=$3  # 转换后的模型路径
TP=$4                # 模型并行度
PP=$5                # 流水并行度
MN=$6                # 模型名称: llama-7b, llama-13b, llama-30b, llama-65b, llama2-7b, llama2-13b, llama2-70b, tiny, auto
EXTRA_VOCAB_SIZE=$7  # 词表扩充大小
mg2hf=$8             # 是否为megatron转huggingface: true, false
shift 8

python_entry megatron_patch.cli.convert \
    --megatron-path="$MEGATRON_PATH" --source="$SOURCE_CKPT_PATH" --target="$TARGET_CKPT_PATH" \
    --tensor-model-parallel-size="$TP" --pipeline-model-parallel-size="$PP" --model-name="$MN" \
    --extra-vocab-size="$EXTRA_VOCAB_SIZE" --mg2hf="$mg2hf" "$@"
