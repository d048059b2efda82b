#!/bin/sh
# 预训练数据处理 (pre-training data). Usage: sh run_make_pretraining_dataset.sh, then the 6 arguments below.
# Writes wudao_llamabpe_text_document.bin and .idx into the output folder.
if grep -ls "$(printf '\r')" "$0" "$(dirname -- "$0")/../../megatron_patch/launch.sh" >&2; then  # Windows line ends:
    printf '%s\n' "has lines that end as on Windows, which no shell reads; sed -i 's/\\r\$//' FILE mends that." >&2  # each of these
    exit 2  # lines then ends in a carriage return,
fi  # which these comments take.
set -eu
patch_root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../../megatron_patch/launch.sh
. "$patch_root/megatron_patch/launch.sh"
check_count 6 "$@"

MEGATRON_PATH=$1                # 设置开源Megatron的代码路径
MEGATRON_PATCH_PATH=$2          # 设置Megatron Patch的代码路径
input_data_dir=$3               # 打包后的wudao数据集的文件夹路径
tokenizer=$4                    # 分词器: llamabpe
output_data_dir=$5              # 输出到bin和idx文件目录
load_dir=$6                     # tokenizer文件路径
shift 6
use_checkout "$MEGATRON_PATCH_PATH"

python_entry megatron_patch.cli.preprocess \
    --megatron-path="$MEGATRON_PATH" --megatron-patch-path="$MEGATRON_PATCH_PATH" --input="$input_data_dir" \
    --tokenizer="$tokenizer" --output-dir="$output_data_dir" --tokenizer-folder="$load_dir" "$@"
