"""The one frozen configuration of a training run, in megatron-core's names. Imports no torch.

`arguments/training.py` reads and checks a script's arguments and fills it; no other module looks at them. It says what
the user asked for. What was found out about files when the run started is kept apart, in `folders/fingerprint.Origin`.
Both are saved as JSON beside each checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_patch.data_paths import NO_DATA, DataSource, JsonFiles
from megatron_patch.formats.peft_adapter import TARGETS, LoraConfig
from megatron_patch.llama.model_config import LlamaConfig

PRECISIONS = ("fp16", "bf16", "fp32", "fp8")
RECOMPUTATIONS = ("sel", "full", "none")
Template = Literal["auto", "alpaca", "pretrain", "llama2-chat", "tokenizer"]
# --gqa-layout: the order of fused QKV rows in a grouped-query checkpoint of 2023 whose files do not tell it.
PER_KV_HEAD, ALL_Q_FIRST = "per-kv-head", "all-q-first"


def run_root(output_path: str, name: str) -> Path:
    """The folder below OUTPUT_BASEPATH in which the run NAME keeps its checkpoints."""
    return Path(output_path) / "checkpoint" / name


@dataclass(frozen=True)
class Options:
    """Flags that may follow a training script's documented arguments.

    Where a default differs from the original recipe's, the README's table of differences gives the reason. The lists in
    `arguments/` take names, kinds, defaults and the texts below the fields from here.
    """

    seed: int = 1234
    """Seed of random weights and of the data's order."""
    weight_decay: float = 0.1
    """Decoupled weight decay; norms are exempt."""
    adam_beta1: float = 0.9
    """Decay rate of Adam's first moment."""
    adam_beta2: float = 0.95
    """Decay rate of Adam's second moment."""
    adam_eps: float = 1e-8
    """What Adam adds to the denominator."""
    clip_grad: float = 1.0
    """Gradients are scaled down to this global L2 norm; 0 turns clipping off."""
    init_method_std: float = 0.02
    """Standard deviation of random initial weights (checkpoint `none`)."""
    initial_loss_scale: float = 65536.0
    """First loss scale of fp16."""
    loss_scale_window: int = 1000
    """fp16: steps without an overflow after which the loss scale doubles."""
    fp8_layers: int = 0
    """fp8: layers at the beginning, and as many at the end, whose products stay in bf16."""
    split: str = "98,2,0"
    """Shares of the data for training, validation and test."""
    eval_interval: int = 100
    """Iterations between two evaluations; 0 turns them off. Fine-tuning by EPOCH evaluates after each."""
    eval_iters: int = 10
    """Global batches of one evaluation. Fine-tuning by EPOCH evaluates on all validation data."""
    log_interval: int = 1
    """Iterations between two console lines."""
    progress: Literal["auto", "true", "false"] = "auto"
    """One live line in the terminal (iteration, loss, tokens/s, time left) in place of Megatron's lines, which go to
    the log file; `auto`: in a terminal outside notebooks."""
    wandb_project: str = ""
    """Show the run in this project of Weights & Biases, too; WANDB_* variables have their meaning."""
    swanlab_project: str = ""
    """Show the run in this project of SwanLab, too; SWANLAB_* variables have their meaning."""
    mlflow_experiment: str = ""
    """Show the run in this experiment of MLflow, too, on MLFLOW_TRACKING_URI's server; without one in mlflow.db below
    OUTPUT_BASEPATH."""
    num_workers: int = 2
    """Processes that load data, for each rank; 0 loads in the training process."""
    resume_from: str = ""
    """Go on from this training checkpoint of another NAME: a run's folder in OUTPUT_BASEPATH/checkpoint, or an
    iteration's."""
    keep_last: int = 0
    """Training checkpoints to keep; 0 keeps all. The one of the lowest validation loss is kept beside them if
    `--save-best` is set."""
    save_best: bool = False
    """Keep the checkpoint of the lowest validation loss; best_checkpointed_iteration.txt names it."""
    early_stopping_patience: int = 0
    """End the run after this many evaluations in a row without a lower validation loss than before; 0 never does."""
    save_weights_only: bool = False
    """Checkpoints hold the weights alone, a seventh of the bytes in bf16: a run can start from one, and none can resume
    from it."""
    local_output: bool = False
    """OUTPUT_BASEPATH is a folder of each node's own disk: each node keeps the checkpoint's files of its ranks, and the
    same nodes go on from them."""
    async_save: Literal["auto", "true", "false"] = "auto"
    """Write checkpoints beside the training, by a process of its own; `auto`: on GPUs, where host memory holds the
    state, and not with `--local-output true`."""
    fail_on_save_error: bool = False
    """End the run when a checkpoint cannot be saved; otherwise it is tried again at the next interval."""
    max_consecutive_skips: int = 100
    """End the run after so many iterations in a row whose loss or gradient was not finite, fp16's first search for a
    loss scale not counted; 0 never does."""
    exit_interval: int = 0
    """Save and stop after this many iterations of this run; 0 never does."""
    exit_duration_in_mins: float = 0.0
    """Save and stop after this many minutes; 0 never does."""
    tokenizer_path: str = ""
    """Folder of the tokenizer; empty: the checkpoint's."""
    tokenizer_engine: Literal["auto", "reference"] = "auto"
    """JSON data: what reads its texts. `reference`: SentencePiece, or `tokenizers` for a tokenizer.json; `auto`:
    fastokens where it gives the same ids and the file is large."""
    gqa_layout: Literal["per-kv-head", "all-q-first"] = "per-kv-head"
    """Order of QKV rows in a grouped-query PRETRAIN_CHECKPOINT_PATH of 2023 whose files do not tell it; `all-q-first`:
    what the original converted from 2023-10-18 to 2023-11-09."""
    template: Template = "auto"
    """JSON data: prompt template; `auto` is the original's, `alpaca` for fine-tuning and `pretrain` for
    pre-training."""
    max_bad_fraction: float = 0.01
    """JSON data: of its records, the share that may be unusable; they are listed in a report and left out."""
    gradient_accumulation_steps: int = 1
    """Fine-tuning by EPOCH: micro-batches that each data-parallel rank adds up for one iteration (elsewhere
    GLOBAL_BATCH_SIZE says it)."""
    packing: bool = False
    """JSON data: several samples in one sequence of SEQ_LEN, with attention kept apart."""
    allow_longer_sequences: bool = False
    """Train on sequences beyond the model's max_position_embeddings, and write the new limit into config.json."""
    kernels: Literal["auto", "torch"] = "auto"
    """`auto`: Triton kernels on GPUs; `torch`: their plain PyTorch references."""
    cuda_graphs: bool = True
    """Replay micro-batches as CUDA graphs where the run allows it; a line of the log says if not, and why."""
    pair_micro_batches: bool = True
    """With CUDA graphs, run two micro-batches in one pass where a step has an even number of them and memory allows
    it; four where two have less than 8,192 tokens."""
    peer_copies: bool = True
    """GPUs of one host read each other's memory for sequence parallelism and ZeRO, by copy engines in NCCL's place."""
    lora_rank: int = 0
    """Train LoRA adapters of this rank, and freeze the model's weights; 0 trains all weights."""
    lora_alpha: float = 0.0
    """LoRA: the adapters' output is multiplied by this / rank; 0: twice the rank, as in PEFT's examples."""
    lora_dropout: float = 0.0
    """LoRA: probability with which an element of an adapter's input is dropped in training."""
    lora_plus_ratio: float = 1.0
    """LoRA+: the learning rate of every adapter's B is LR times this; A keeps LR."""
    lora_targets: str = ""
    """LoRA: linear layers that get an adapter, by Hugging Face's names, such as q_proj,v_proj; empty: all seven."""
    lora_vocabulary: bool = False
    """LoRA: train embedding and output layer too, whole, as PEFT's modules_to_save; with EXTRA_VOCAB_SIZE above 0
    they always are."""
    lora_adapter: str = ""
    """LoRA: begin with the adapter in this folder, saved by PEFT or by a run of this project; rank, alpha and layers
    are the adapter's."""
    qlora: bool = False
    """LoRA: hold the frozen linear layers in 4 bits (NF4 with double quantization, as bitsandbytes does)."""
    profile: bool = False
    """Write a PyTorch profiler trace of a few iterations for TensorBoard."""
    profile_step_start: int = 10
    """First profiled iteration of this run."""
    profile_step_end: int = 12
    """Iteration at which profiling ends, not profiled itself."""
    exit_grace_seconds: int = 30
    """After SIGTERM or Ctrl-C, seconds for the step and its checkpoint before the processes are killed."""
    rendezvous_timeout_minutes: float = 10.0
    """Several nodes: how long they wait for each other at the start."""
    distributed_timeout_minutes: float = 10.0
    """A process that stands still for so long ends the run, which says which one, and where."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run was asked to do, resolved and checked."""

    task: str  # "pretrain" or "finetune"
    name: str  # NAME: the run's folder in checkpoint/, and its prefix in tensorboard/ and log/
    model: LlamaConfig
    extra_vocab_size: int  # rows that EXTRA_VOCAB_SIZE adds to the model's embedding and output layer
    load: str | None  # PRETRAIN_CHECKPOINT_PATH; None starts from random weights
    output_path: str  # OUTPUT_BASEPATH
    # Layout
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    sequence_parallel: bool
    use_distributed_optimizer: bool
    # Numbers
    precision: str  # one of PRECISIONS
    recompute: str  # one of RECOMPUTATIONS
    use_flash_attn: bool
    micro_batch_size: int  # samples
    global_batch_size: int  # samples
    lr: float
    min_lr: float
    # Data
    seq_length: int  # SEQ_LEN, tokens
    pad_length: int  # PAD_LEN, tokens
    train_data: DataSource
    valid_data: DataSource | None  # None: a part of `train_data`, by --split
    # Pre-training, and fine-tuning by iterations
    train_iters: int = 0  # iterations
    warmup_iters: int = 0  # iterations
    save_interval: int = 0  # iterations
    # Fine-tuning by epochs
    epochs: int = 0  # passes over `train_data`; 0: `train_iters` is the length
    options: Options = field(default_factory=Options)

    @property
    def weight_precision(self) -> str:
        """Of the weights in checkpoints and in everything but FP8 products: `bf16` where PR is fp8."""
        return "bf16" if self.precision == "fp8" else self.precision

    @property
    def sample_length(self) -> int:
        """S, the tokens in one row of a batch: PAD_LEN for JSON data without packing, else SEQ_LEN."""
        return self.pad_length if self.reads_json and not self.options.packing else self.seq_length

    @property
    def reads_json(self) -> bool:
        """Whether the training data is JSON, which is tokenized here. Indexed data holds tokens."""
        return isinstance(self.train_data, JsonFiles)

    @property
    def template(self) -> Template:
        """The prompt template of JSON data: what `--template` names, else the original's for this task."""
        if self.options.template != "auto":
            return self.options.template
        return "pretrain" if self.task == "pretrain" and self.reads_json else "alpaca"

    @property
    def decay_style(self) -> Literal["cosine", "linear"]:
        """How the learning rate falls to `min_lr`: by a cosine where epochs are counted, else linearly."""
        return "cosine" if self.epochs else "linear"

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that are trained over the model's frozen weights; None where all weights are trained."""
        options = self.options
        if not options.lora_rank:
            return None
        saved = options.lora_vocabulary or self.extra_vocab_size > 0
        return LoraConfig(
            rank=options.lora_rank,
            alpha=options.lora_alpha or 2.0 * options.lora_rank,
            dropout=options.lora_dropout,
            targets=tuple(name for name in TARGETS if name in options.lora_targets.split(",")) or TARGETS,
            saved=("embed_tokens", "lm_head") if saved else (),
            base=self.load or "",
            quantizes=options.qlora,
        )

    @property
    def vocab_size(self) -> int:
        """V, the rows of the embedding and of the output layer."""
        return self.model.vocab_size + self.extra_vocab_size

    @property
    def checkpoint_folder(self) -> str:
        """The folder in which the run's checkpoints are saved."""
        return str(run_root(self.output_path, self.name))

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain values, for JSON. A data source stands in it as the text that was typed."""
        plain = asdict(self)
        for name in ("train_data", "valid_data"):
            source = getattr(self, name)
            del plain[name]
            plain[f"{name}_path"] = None if source is None else source.text  # the key of every run recorded so far
        return plain


def one_process_config(model: LlamaConfig, length: int, **changed: Any) -> TrainConfig:
    """A configuration for `model` alone in one process, for callers that feed it batches by themselves.

    fp32, unfused attention, no recomputation, one row of `length` tokens a batch, no data and no output; but for
    `changed`, fields of `TrainConfig`.
    """
    values: dict[str, Any] = dict(
        task="pretrain", name="alone", model=model, extra_vocab_size=0, load=None, output_path=".",
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, sequence_parallel=False,
        use_distributed_optimizer=False, precision="fp32", recompute="none", use_flash_attn=False, micro_batch_size=1,
        global_batch_size=1, lr=0.0, min_lr=0.0, seq_length=length, pad_length=length, train_data=NO_DATA, valid_data=None,
    )  # fmt: skip
    return TrainConfig(**(values | changed))
