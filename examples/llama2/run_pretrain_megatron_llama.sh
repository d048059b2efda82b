#!/bin/sh
# 继续预训练 LLaMA-2 (continued pre-training). Usage: sh run_pretrain_megatron_llama.sh, then the 24 arguments below.
if grep -ls "$(printf '\r')" "$0" "$(dirname -- "$0")/../../megatron_patch/launch.sh" >&2; then  # Windows line ends:
    printf '%s\n' "has lines that end as on Windows, which no shell reads; sed -i 's/\\r\$//' FILE mends that." >&2  # each of these
    exit 2  # lines then ends in a carriage return,
fi  # which these comments take.
set -eu
patch_root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../../megatron_patch/launch.sh
. "$patch_root/megatron_patch/launch.sh"
check_count 24 "$@"

ENV=$1                          # 运行环境: dlc, dsw
MEGATRON_PATH=$2                # 设置开源Megatron的代码路径
MEGATRON_PATCH_PATH=$3          # 设置Megatron Patch的代码路径
MODEL_SIZE=$4                   # 模型结构参数量级：7B, 13B
BATCH_SIZE=$5                   # 每卡训练一次迭代样本数: 4, 8
GLOBAL_BATCH_SIZE=$6            # 全局batch size
LR=$7                           # 学习率: 1e-5, 5e-5
MIN_LR=$8                       # 最小学习率: 1e-6, 5e-6
SEQ_LEN=$9                      # 序列长度
PAD_LEN=${10}                   # Padding长度：100
EXTRA_VOCAB_SIZE=${11}          # 词表扩充大小
PR=${12}                        # 训练精度: fp16, bf16
TP=${13}                        # 模型并行度
PP=${14}                        # 流水并行度
AC=${15}                        # 激活检查点模式: sel, full
DO=${16}                        # 是否使用Megatron版Zero-1降显存优化器: true, false
FL=${17}                        # 是否使用Flash Attention: true, false
SP=${18}                        # 是否使用序列并行: true, false
SAVE_INTERVAL=${19}             # 保存ckpt的间隔
DATASET_PATH=${20}              # 训练数据集路径
PRETRAIN_CHECKPOINT_PATH=${21}  # 预训练模型路径
TRAIN_TOKENS=${22}              # 训练token数
WARMUP_TOKENS=${23}             # 预热token数
OUTPUT_BASEPATH=${24}           # 训练输出文件路径
shift 24
use_checkout "$MEGATRON_PATCH_PATH"

python_entry megatron_patch.launch pretrain \
    --env="$ENV" --megatron-path="$MEGATRON_PATH" --megatron-patch-path="$MEGATRON_PATCH_PATH" \
    --model-size="$MODEL_SIZE" --micro-batch-size="$BATCH_SIZE" --global-batch-size="$GLOBAL_BATCH_SIZE" \
    --lr="$LR" --min-lr="$MIN_LR" --seq-length="$SEQ_LEN" --max-padding-length="$PAD_LEN" \
    --extra-vocab-size="$EXTRA_VOCAB_SIZE" --precision="$PR" \
    --tensor-model-parallel-size="$TP" --pipeline-model-parallel-size="$PP" \
    --activation-checkpoint="$AC" --use-distributed-optimizer="$DO" --use-flash-attn="$FL" \
    --sequence-parallel="$SP" --save-interval="$SAVE_INTERVAL" --data-path="$DATASET_PATH" \
    --load="$PRETRAIN_CHECKPOINT_PATH" --train-tokens="$TRAIN_TOKENS" --warmup-tokens="$WARMUP_TOKENS" \
    --output-path="$OUTPUT_BASEPATH" "$@"
