#!/bin/sh
# 评估 LLaMA-2 (evaluation). Usage: sh run_evaluate_megatron_llama.sh, then the 13 arguments below.
if grep -ls "$(printf '\r')" "$0" "$(dirname -- "$0")/../../megatron_patch/launch.sh" >&2; then  # Windows line ends:
    printf '%s\n' "has lines that end as on Windows, which no shell reads; sed -i 's/\\r\$//' FILE mends that." >&2  # each of these
    exit 2  # lines then ends in a carriage return,
fi  # which these comments take.
set -eu
patch_root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../../megatron_patch/launch.sh
. "$patch_root/megatron_patch/launch.sh"
check_count 13 "$@"

ENV=$1                          # 运行环境: dlc, dsw
MEGATRON_PATH=$2                # 设置开源Megatron的代码路径
MEGATRON_PATCH_PATH=$3          # 设置Megatron Patch的代码路径
MODEL_SIZE=$4                   # 模型结构参数量级: 7B, 13B
BATCH_SIZE=$5                   # 每卡一次前向的样本数
SEQ_LEN=$6                      # 序列长度
PAD_LEN=$7                      # Padding长度
EXTRA_VOCAB_SIZE=$8             # 词表扩充大小
PR=$9                           # 推理精度: fp16, bf16
TP=${10}                        # 模型并行度
PP=${11}                        # 流水并行度
DATASET_PATH=${12}              # 评估数据集路径, 可用空格或逗号分隔多个
PRETRAIN_CHECKPOINT_PATH=${13}  # 待评估的模型路径
shift 13
use_checkout "$MEGATRON_PATCH_PATH"

python_entry megatron_patch.launch evaluate \
    --env="$ENV" --megatron-path="$MEGATRON_PATH" --megatron-patch-path="$MEGATRON_PATCH_PATH" \
    --model-size="$MODEL_SIZE" --micro-batch-size="$BATCH_SIZE" --seq-length="$SEQ_LEN" --max-padding-length="$PAD_LEN" \
    --extra-vocab-size="$EXTRA_VOCAB_SIZE" --precision="$PR" --tensor-model-parallel-size="$TP" \
    --pipeline-model-parallel-size="$PP" --data-path="$DATASET_PATH" --load="$PRETRAIN_CHECKPOINT_PATH" "$@"
