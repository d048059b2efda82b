"""What a training run keeps in each GPU's memory, by kind, from its arguments alone. Imports no torch.

Everything is counted, nothing is fitted: weights and optimizer from the parameters of a pipeline stage, activations
from the tensors that each layer saves for its backward pass (model/llama.py and the kernels say which). `tests/plan`
holds the sums against measured peaks. Shape letters as in `llama/model_config.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from megatron_patch.formats.peft_adapter import ATTENTION_TARGETS, MLP_TARGETS, LoraConfig
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.llama.vocabulary import padded_rows
from megatron_patch.plan.lora import adapter_parameters, linear_parameters, packed_bytes

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp8": 2}  # of a weight or an activation, by precision
_FP32 = 4
# CUDA's context with the libraries' kernels, and NCCL's buffers for each communicator that is used: seen beside what
# torch allocates, with nvidia-smi.
_CONTEXT, _COMMUNICATOR = 600 << 20, 350 << 20
# The linear layers that read the same input.
_INPUTS = {"attention": ATTENTION_TARGETS[:3], "mlp": MLP_TARGETS[:2], "down": MLP_TARGETS[2:]}


@dataclass(frozen=True)
class RunShape:
    """What decides a run's memory, in megatron-core's names.

    Attributes:
        sample_length: tokens of one row of a batch, S.
        micro_batches: of a step, for each replica.
        in_a_pass: micro-batches that go through the model at once.
        keeping: layers that under AC sel keep unfused attention's probabilities all the same, since there is memory.
        lora: the adapters that are trained over frozen weights; None trains all weights.
        fp8_layers: with fp8, layers at either end that stay in bf16.
    """

    model: LlamaConfig
    extra_vocab_size: int
    precision: str
    sample_length: int
    micro_batch_size: int
    micro_batches: int
    data_parallel_size: int
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    sequence_parallel: bool
    use_distributed_optimizer: bool
    use_flash_attn: bool
    recompute: str
    in_a_pass: int = 1
    keeping: int = 0
    lora: LoraConfig | None = None
    fp8_layers: int = 0


@dataclass(frozen=True)
class StageMemory:
    """Bytes on each GPU of one pipeline stage.

    Attributes:
        weights, gradients, optimizer: for the whole run.
        activations: saved for the backward passes of all micro-batches in flight.
        working: what one layer's backward pass takes beside them, or the loss.
        communication: NCCL's buffers; torch does not count them.
        context: CUDA's own; torch does not count it.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    communication: int
    context: int

    @property
    def allocated(self) -> int:
        """What torch counts as its peak."""
        return self.total - self.communication - self.context

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, one.name) for one in fields(self))


def memory_of_stages(run: RunShape) -> list[StageMemory]:
    """One entry a pipeline stage, the first one first."""
    return [_stage(run, stage) for stage in range(run.pipeline_model_parallel_size)]


def fullest_stage(run: RunShape) -> tuple[int, StageMemory]:
    """(number, memory) of the stage that takes most."""
    stages = memory_of_stages(run)
    number = max(range(len(stages)), key=lambda stage: stages[stage].total)
    return number, stages[number]


def stage_parameters(run: RunShape, stage: int) -> int:
    """Parameters of one GPU of a stage: its layers' share, and what the first and the last stage have beside layers."""
    model, tp, h = run.model, run.tensor_model_parallel_size, run.model.hidden_size
    layer = _multiplied(run) + 2 * h
    vocabulary = padded_rows(model.vocab_size + run.extra_vocab_size, tp) // tp * h
    found = model.num_layers // run.pipeline_model_parallel_size * layer
    if stage == 0:
        found += vocabulary
    if stage == run.pipeline_model_parallel_size - 1:
        found += vocabulary + h
    return found


def trained_of_stage(run: RunShape, stage: int) -> int:
    """Of the parameters of one GPU of a stage, adapters included, those that are trained."""
    if run.lora is None:
        return stage_parameters(run, stage)
    model, tp, stages = run.model, run.tensor_model_parallel_size, run.pipeline_model_parallel_size
    vocabulary = padded_rows(model.vocab_size + run.extra_vocab_size, tp) // tp * model.hidden_size if run.lora.saved else 0
    found = model.num_layers // stages * adapter_parameters(model, run.lora, tp)
    return found + vocabulary * ((stage == 0) + (stage == stages - 1))


def gathered_bytes(run: RunShape, stage: int) -> int:
    """Bytes of those trained weights as data-parallel ranks gather them: in FP8 what is multiplied so."""
    in_fp8 = _fp8_layers(run, stage) * _multiplied(run) if run.lora is None else 0
    return BYTES[run.precision] * trained_of_stage(run, stage) - in_fp8


def _multiplied(run: RunShape) -> int:
    """Parameters of one layer's matrices on one GPU."""
    model, tp, h = run.model, run.tensor_model_parallel_size, run.model.hidden_size
    attention = (2 * model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels * h // tp
    return attention + 3 * h * model.ffn_hidden_size // tp


def _fp8_layers(run: RunShape, stage: int) -> int:
    """Layers of a stage that multiply in FP8."""
    if run.precision != "fp8":
        return 0
    count = run.model.num_layers // run.pipeline_model_parallel_size
    first, last = max(stage * count, run.fp8_layers), min((stage + 1) * count, run.model.num_layers - run.fp8_layers)
    return max(0, last - first)


def _stage(run: RunShape, stage: int) -> StageMemory:
    trained = trained_of_stage(run, stage)
    layers = run.model.num_layers // run.pipeline_model_parallel_size
    adapters = 0 if run.lora is None else layers * adapter_parameters(run.model, run.lora, run.tensor_model_parallel_size)
    owners = run.data_parallel_size if run.use_distributed_optimizer else 1
    # A last share of parameters that its owner updates in fp32, beside Adam's two moments. In bf16 with ZeRO the fp32
    # weights are the bf16 ones and 16 bits more.
    master = 0 if run.precision == "fp32" else 2 if run.precision in ("bf16", "fp8") and run.use_distributed_optimizer else _FP32
    tokens = run.micro_batch_size * run.sample_length * run.in_a_pass
    return StageMemory(
        # Two FP8 copies of what is multiplied in FP8.
        weights=_weights(run, stage, adapters) + 2 * _fp8_layers(run, stage) * _multiplied(run),
        gradients=trained * _FP32,
        optimizer=trained * (2 * _FP32 + master) // owners,
        activations=_in_flight(run, stage) * _saved(run, stage, tokens),
        working=_working(run, stage, tokens),
        communication=_COMMUNICATOR * _communicators(run),
        context=_CONTEXT,
    )


def _weights(run: RunShape, stage: int, adapters: int) -> int:
    """Bytes of a stage's weights and of its `adapters`, a number of parameters."""
    width, tp = BYTES[run.precision], run.tensor_model_parallel_size
    parameters = stage_parameters(run, stage) + adapters
    if run.lora is None or not run.lora.quantizes:
        return parameters * width
    layers = run.model.num_layers // run.pipeline_model_parallel_size
    return (parameters - layers * linear_parameters(run.model, tp)) * width + packed_bytes(run.model, tp, layers, width)


def _in_flight(run: RunShape, stage: int) -> int:
    """Micro-batches of which a stage holds activations: as many as there are stages from it on, under 1F1B."""
    return min(run.pipeline_model_parallel_size - stage, run.micro_batches)


def _saved(run: RunShape, stage: int, tokens: int) -> int:
    """Bytes that a stage's layers save for the backward pass of one micro-batch of `tokens`."""
    model, tp = run.model, run.tensor_model_parallel_size
    layers, width = model.num_layers // run.pipeline_model_parallel_size, BYTES[run.precision]
    h = model.hidden_size / (tp if run.sequence_parallel else 1)
    if run.recompute == "full":
        return int(layers * tokens * h * width)
    spared = _fp8_layers(run, stage) * tokens * _spared_by_fp8(run, h)
    return int(layers * tokens * _layer_bytes(run, h, width) - spared) + _keeping(run, layers) * _probabilities(run)


def _spared_by_fp8(run: RunShape, h: float) -> float:
    """Bytes a token that one layer saves less with FP8 products.

    Of what comes out of the norms and of the MLP's product an FP8 copy is kept. Of attention's context there is one
    beside the bf16 one, which attention itself keeps. Under sequence parallelism what comes out of a norm stays bf16.
    A frozen layer keeps nothing for its own products, and bf16 inputs for its adapters.
    """
    if run.lora is not None:
        return 0.0
    model, tp = run.model, run.tensor_model_parallel_size
    norms = 0 if run.sequence_parallel else 2 * h
    return norms + (model.ffn_hidden_size - model.num_attention_heads * model.kv_channels) / tp


def _layer_bytes(run: RunShape, h: float, width: int) -> float:
    """Bytes a token that one layer saves, but for unfused attention's probabilities."""
    model, tp = run.model, run.tensor_model_parallel_size
    heads = (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels / tp  # q, k, v
    context = model.num_attention_heads * model.kv_channels / tp
    # Twice the sum before a norm and what comes out of the norm; the MLP's gate and up, and their product.
    elements = 4 * h + heads + context + 3 * model.ffn_hidden_size / tp
    if run.lora is not None:  # a frozen layer keeps its input for its adapter alone; attention keeps `context` itself
        kept = {name: any(one in run.lora.targets for one in names) for name, names in _INPUTS.items()}
        elements -= h * (2 - kept["attention"] - kept["mlp"]) + model.ffn_hidden_size / tp * (not kept["down"])
        elements += run.lora.rank * len(run.lora.targets)
    rows = 2 * _FP32 + _FP32 * model.num_attention_heads / tp  # 1 / rms of two norms, attention's log Σ exp
    return elements * width + rows + _dropout_bytes(run, h, width)


def _dropout_bytes(run: RunShape, h: float, width: int) -> float:
    """Bytes a token that one layer saves more with adapters' dropout: masks, and inputs that nothing else has dropped.

    Attention keeps its context itself, and under sequence parallelism a norm's output is dropped when it is gathered.
    """
    if run.lora is None or not run.lora.dropout:
        return 0.0
    model, tp, targets = run.model, run.tensor_model_parallel_size, run.lora.targets
    context = model.num_attention_heads * model.kv_channels / tp * ("o_proj" in targets)
    norms = sum(any(one in targets for one in _INPUTS[name]) for name in ("attention", "mlp"))
    down = model.ffn_hidden_size / tp * ("down_proj" in targets)
    return norms * model.hidden_size + context + down + (context + norms * (model.hidden_size - h)) * width


def _keeping(run: RunShape, layers: int) -> int:
    """How many of a stage's `layers` keep unfused attention's probabilities; AC sel computes the others' again."""
    if run.use_flash_attn or run.recompute == "full":
        return 0
    return layers if run.recompute == "none" else min(layers, run.keeping)


def _probabilities(run: RunShape) -> int:
    """Bytes of unfused attention's probabilities of one layer and pass."""
    heads = run.model.num_attention_heads // run.tensor_model_parallel_size
    return heads * run.micro_batch_size * run.sample_length**2 * BYTES[run.precision] * run.in_a_pass


def _working(run: RunShape, stage: int, tokens: int) -> int:
    """Bytes of what lives for a moment: gradients inside one layer; on the last stage logits and their gradient."""
    model, tp, width = run.model, run.tensor_model_parallel_size, BYTES[run.precision]
    layer = (6 * model.hidden_size + 3 * model.ffn_hidden_size / tp) * width
    if run.precision == "fp8":  # two FP8 copies of the widest gradient, one in front of a frozen weight
        layer += (4 if run.lora is None else 2) * model.ffn_hidden_size / tp
    if run.recompute == "full":  # a layer's forward pass runs again before its backward pass
        layer += _layer_bytes(run, model.hidden_size / (tp if run.sequence_parallel else 1), width)
    logits = 0.0
    if stage == run.pipeline_model_parallel_size - 1:
        logits = padded_rows(model.vocab_size + run.extra_vocab_size, tp) / tp * width
    scores = 0
    if not run.use_flash_attn:
        heads = model.num_attention_heads // tp
        scores = 2 * heads * run.micro_batch_size * run.sample_length**2 * width * run.in_a_pass
    return int(tokens * (layer + logits)) + scores


def _communicators(run: RunShape) -> int:
    """NCCL's communicators that a GPU uses, each with buffers of its own."""
    sizes = (run.data_parallel_size, run.tensor_model_parallel_size, run.pipeline_model_parallel_size)
    several = sum(size > 1 for size in sizes)
    return several + (several > 1)  # and one of all ranks, or of a replica, for the gradients' norm
