#!/bin/sh
# 按迭代数有监督微调 LLaMA-2 (fine-tuning by iterations). Usage: sh run_finetune_megatron_llama_withGA.sh, then the 25 arguments below.
if grep -ls "$(printf '\r')" "$0" "$(dirname -- "$0")/../../megatron_patch/launch.sh" >&2; then  # Windows line ends:
    printf '%s\n' "has lines that end as on Windows, which no shell reads; sed -i 's/\\r\$//' FILE mends that." >&2  # each of these
    exit 2  # lines then ends in a carriage return,
fi  # which these comments take.
set -eu
patch_root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../../megatron_patch/launch.sh
. "$patch_root/megatron_patch/launch.sh"
check_count 25 "$@"

ENV=$1                          # 运行环境: dlc, dsw
MEGATRON_PATCH_PATH=$2          # 设置Megatron Patch的代码路径
MODEL_SIZE=$3                   # 模型结构参数量级: 7B, 13B
BATCH_SIZE=$4                   # 每卡训练一次迭代样本数: 4, 8
GLOBAL_BATCH_SIZE=$5            # 全局batch size
LR=$6                           # 学习率: 1e-5, 5e-5
MIN_LR=$7                       # 最小学习率: 1e-6, 5e-6
SEQ_LEN=$8                      # 序列长度
PAD_LEN=$9                      # Padding长度：100
EXTRA_VOCAB_SIZE=${10}          # 词表扩充大小
PR=${11}                        # 训练精度: fp16, bf16
TP=${12}                        # 模型并行度
PP=${13}                        # 流水并行度
AC=${14}                        # 激活检查点模式: sel, full
DO=${15}                        # 是否使用Megatron版Zero-1降显存优化器: true, false
FL=${16}                        # 是否使用Flash Attention: true, false
SP=${17}                        # 是否使用序列并行: true, false
TE=${18}                        # 是否使用Transformer Engine: true, false
SAVE_INTERVAL=${19}             # 保存ckpt的间隔
DATASET_PATH=${20}              # 训练数据集路径
VALID_DATASET_PATH=${21}        # 验证数据集路径
PRETRAIN_CHECKPOINT_PATH=${22}  # 预训练模型路径
TRAIN_ITERS=${23}               # 训练steps数
WARMUP_ITERS=${24}              # 预热steps数
OUTPUT_BASEPATH=${25}           # 训练输出文件路径
shift 25
use_checkout "$MEGATRON_PATCH_PATH"

python_entry megatron_patch.launch finetune_with_ga \
    --env="$ENV" --megatron-patch-path="$MEGATRON_PATCH_PATH" --model-size="$MODEL_SIZE" \
    --micro-batch-size="$BATCH_SIZE" --global-batch-size="$GLOBAL_BATCH_SIZE" --lr="$LR" --min-lr="$MIN_LR" \
    --seq-length="$SEQ_LEN" --max-padding-length="$PAD_LEN" --extra-vocab-size="$EXTRA_VOCAB_SIZE" \
    --precision="$PR" --tensor-model-parallel-size="$TP" --pipeline-model-parallel-size="$PP" \
    --activation-checkpoint="$AC" --use-distributed-optimizer="$DO" --use-flash-attn="$FL" \
    --sequence-parallel="$SP" --transformer-engine="$TE" --save-interval="$SAVE_INTERVAL" \
    --train-data-path="$DATASET_PATH" --valid-data-path="$VALID_DATASET_PATH" \
    --load="$PRETRAIN_CHECKPOINT_PATH" --train-iters="$TRAIN_ITERS" --warmup-iters="$WARMUP_ITERS" \
    --output-path="$OUTPUT_BASEPATH" "$@"
