"""The lists of the training scripts. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from megatron_patch.arguments.argument import Script, numbered
from megatron_patch.arguments.documented_rows import ROWS, rows
from megatron_patch.arguments.option_rows import ACCUMULATION, EVALUATION, LAUNCHER, SHARED, SPLIT

_HEAD = "ENV MEGATRON_PATH MEGATRON_PATCH_PATH MODEL_SIZE BATCH_SIZE"
_MIDDLE = "LR MIN_LR SEQ_LEN PAD_LEN EXTRA_VOCAB_SIZE PR TP PP AC DO FL SP"

PRETRAIN = Script(
    name="run_pretrain_megatron_llama.sh",
    path="examples/llama2/run_pretrain_megatron_llama.sh",
    zh="继续预训练 LLaMA-2",
    en="continued pre-training of LLaMA-2",
    documented=numbered(
        *rows(_HEAD),
        *rows("GLOBAL_BATCH_SIZE"),
        *rows(_MIDDLE),
        *rows("SAVE_INTERVAL DATASET_PATH PRETRAIN_CHECKPOINT_PATH TRAIN_TOKENS WARMUP_TOKENS OUTPUT_BASEPATH"),
    ),
    flags=(*SHARED, *SPLIT, *EVALUATION, *LAUNCHER),
    others=ACCUMULATION,
)

FINETUNE = Script(
    name="run_finetune_megatron_llama.sh",
    path="examples/llama2/run_finetune_megatron_llama.sh",
    zh="有监督微调 LLaMA-2",
    en="supervised fine-tuning of LLaMA-2",
    documented=numbered(
        *rows(_HEAD),
        *rows(_MIDDLE),
        *rows("TRAIN_DATASET_PATH VALID_DATASET_PATH PRETRAIN_CHECKPOINT_PATH EPOCH OUTPUT_BASEPATH"),
    ),
    flags=(*SHARED, *ACCUMULATION, *LAUNCHER),
    others=(*SPLIT, *EVALUATION),
)

FINETUNE_WITH_GA = Script(
    name="run_finetune_megatron_llama_withGA.sh",
    path="examples/llama2/run_finetune_megatron_llama_withGA.sh",
    zh="按迭代数有监督微调 LLaMA-2，指定全局 batch",
    en="supervised fine-tuning of LLaMA-2 by iterations of a global batch",
    documented=numbered(
        *rows("ENV MEGATRON_PATCH_PATH MODEL_SIZE BATCH_SIZE GLOBAL_BATCH_SIZE"),
        *rows(_MIDDLE),
        *rows("TE SAVE_INTERVAL"),
        replace(ROWS["TRAIN_DATASET_PATH"], name="DATASET_PATH"),
        replace(ROWS["VALID_DATASET_PATH"], en="The same for validation: every --eval-interval iterations --eval-iters batches "
                "of it are evaluated; of several, `a b`, each has its loss."),
        *rows("PRETRAIN_CHECKPOINT_PATH TRAIN_ITERS WARMUP_ITERS OUTPUT_BASEPATH"),
    ),
    flags=(*SHARED, *EVALUATION, *LAUNCHER),
    others=(*SPLIT, *ACCUMULATION),
)  # fmt: skip
