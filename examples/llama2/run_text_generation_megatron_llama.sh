#!/bin/sh
# 用 LLaMA-2 生成文本 (text generation). Usage: sh run_text_generation_megatron_llama.sh, then the 19 arguments below.
if grep -ls "$(printf '\r')" "$0" "$(dirname -- "$0")/../../megatron_patch/launch.sh" >&2; then  # Windows line ends:
    printf '%s\n' "has lines that end as on Windows, which no shell reads; sed -i 's/\\r\$//' FILE mends that." >&2  # each of these
    exit 2  # lines then ends in a carriage return,
fi  # which these comments take.
set -eu
patch_root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../../megatron_patch/launch.sh
. "$patch_root/megatron_patch/launch.sh"
check_count 19 "$@"

ENV=$1                    # 运行环境: dlc, dsw
MEGATRON_PATH=$2          # 设置开源Megatron的代码路径
MEGATRON_PATCH_PATH=$3    # 设置Megatron Patch的代码路径
CHECKPOINT_PATH=$4        # 模型路径
MODEL_SIZE=$5             # 模型结构参数量级: 7B, 13B
TP=$6                     # 模型并行度
BS=$7                     # 同时生成的样本数
SEQ_LEN=$8                # 序列长度
PAD_LEN=$9                # Padding长度
EXTRA_VOCAB_SIZE=${10}    # 词表扩充大小
PR=${11}                  # 推理精度: fp16, bf16
TOP_K=${12}               # 采样候选token数: 0为不限制
INPUT_SEQ_LEN=${13}       # 输入序列长度
OUTPUT_SEQ_LEN=${14}      # 输出序列长度
INPUT_FILE=${15}          # 输入文件, 每行一个含query的JSON: none为交互模式
OUTPUT_FILE=${16}         # 输出文件
TOP_P=${17}               # 核采样概率: 0为不限制
TEMPERATURE=${18}         # 采样温度
REPETITION_PENALTY=${19}  # 重复惩罚: 1为不惩罚, 可取1.1至1.5
shift 19
use_checkout "$MEGATRON_PATCH_PATH"

python_entry megatron_patch.launch generate \
    --env="$ENV" --megatron-path="$MEGATRON_PATH" --megatron-patch-path="$MEGATRON_PATCH_PATH" \
    --load="$CHECKPOINT_PATH" --model-size="$MODEL_SIZE" --tensor-model-parallel-size="$TP" --micro-batch-size="$BS" \
    --seq-length="$SEQ_LEN" --max-padding-length="$PAD_LEN" --extra-vocab-size="$EXTRA_VOCAB_SIZE" --precision="$PR" \
    --top-k="$TOP_K" --input-len="$INPUT_SEQ_LEN" --out-seq-length="$OUTPUT_SEQ_LEN" \
    --text-generate-input-file="$INPUT_FILE" --text-generate-output-file="$OUTPUT_FILE" --top-p="$TOP_P" \
    --temperature="$TEMPERATURE" --repetition-penalty="$REPETITION_PENALTY" "$@"
