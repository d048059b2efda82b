"""How long a training step takes, from its arguments and the GPUs' rates. Imports no torch.

Products, attention, the kernels between them, the optimizer and what is sent are counted and divided by rates. A step
is their sum: what NCCL does beside products takes multiprocessors from them, and at a GPU's power limit that costs
about what it would alone. Copies between GPUs take none, so only a share of their time counts.
`tests/plan/test_speed.py` holds the sums against measured runs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from megatron_patch.plan.memory import BYTES, RunShape, gathered_bytes, trained_of_stage
from megatron_patch.plan.rates import Rates

# fp16's longer mantissas take more energy: an 8192³ product at the power limit is 4.3 % slower.
_FP16 = 1 / 1.043
# FP8 products at the power limit beside bf16 ones: 1,190 TFLOP/s forward, 1,200 and 1,050 backward (H200).
_FP8 = 1.70
# Share of the products' rate that attention reaches: cuDNN's in 336 µs forward and backward for 2,048 tokens of a
# layer of 7B, and the two products of unfused attention.
_FUSED, _UNFUSED = 0.535, 0.7
# Share of a copy's bandwidth that norms, rotary positions and SwiGLU reach together (the table of kernels).
_KERNELS = 0.78
# Bytes a parameter that Adam and the gradients' norm read and write in 16 bits with fp32 state.
_UPDATE = 32
# The same of weights that are cast to FP8. A GPU that has them all reads them for the largest and for the cast, and
# writes them twice. Under ZeRO it does so with its part, once, and turns what it has gathered.
_CAST, _CAST_OWN, _CAST_GATHERED = 6, 5, 3
# Seconds in which Python launches one layer, forward and backward, where no CUDA graph does: alone, as a pipeline's
# stage and with tensor parallelism's collectives.
_LAUNCHES, _LAUNCHES_OF_STAGES, _LAUNCHES_OF_TENSORS = 4.3e-3, 5.0e-3, 6.0e-3
# Shares of NCCL's time that copies between GPUs of one host cost: inside layers (TP 4, SP), and ZeRO's (DP 4).
_COPIES_INSIDE, _COPIES_OF_REPLICAS = 0.57, 0.35
# Bytes a second that each GPU sends to another host: one 400 Gbit/s card for each GPU, nine tenths of it.
_NETWORK = 45e9


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step on each GPU, by what takes them.

    Attributes:
        products, attention, kernels: of all micro-batches; kernels are norms, rotary positions, SwiGLU and the loss.
        recomputing: what AC full computes again.
        tensor: collectives inside layers.
        waiting: a pipeline's stages for each other, the bubble and the last stage's head.
        launching: Python, where it launches more slowly than the GPU computes.
        replicas: gradients reduced and weights gathered.
        optimizer: the update.
    """

    products: float
    attention: float
    kernels: float
    recomputing: float
    tensor: float
    waiting: float
    launching: float
    replicas: float
    optimizer: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, one.name) for one in fields(self))


@dataclass(frozen=True)
class _Pass:
    """Seconds of one micro-batch, forward and backward: in one layer, and in the head with the loss."""

    products: float
    attention: float
    kernels: float
    recomputing: float
    tensor: float
    head: float
    loss: float

    @property
    def layer(self) -> float:
        return self.products + self.attention + self.kernels + self.recomputing + self.tensor


def step_time(run: RunShape, rates: Rates, gpus_per_node: int, nodes: int, graphs: bool = True, copies: bool = True) -> StepTime:
    """The time of a step of a run in 16 bits.

    Args:
        graphs: whether micro-batches are CUDA graphs.
        copies: whether GPUs of one host read each other's memory where they can, instead of NCCL's communicating.
    """
    assert run.precision != "fp32", "fp32 is for CPUs and for debugging"
    copies = copies and rates.copies
    inside = _COPIES_INSIDE if copies and graphs and run.sequence_parallel else 1.0
    one, layers = _one_pass(run, rates, inside), run.model.num_layers // run.pipeline_model_parallel_size
    computed = layers * one.layer + one.head + one.loss
    between = _sent_to_the_next_stage(run) / _NETWORK if nodes > 1 else 0.0
    launched = 0.0 if graphs else max(0.0, layers * _launches(run) - computed)
    slots = run.micro_batches + run.pipeline_model_parallel_size - 1
    own = computed if run.pipeline_model_parallel_size == 1 else computed - (one.head + one.loss) * _without_head(run)
    replicas, optimizer = _replicas(run, rates, gpus_per_node, nodes), _optimizer(run, rates)
    if copies and nodes == 1 and run.use_distributed_optimizer:
        replicas *= _COPIES_OF_REPLICAS
    return StepTime(
        products=run.micro_batches * (layers * one.products + one.head * (1 - _without_head(run))),
        attention=run.micro_batches * layers * one.attention,
        kernels=run.micro_batches * (layers * one.kernels + one.loss * (1 - _without_head(run))),
        recomputing=run.micro_batches * layers * one.recomputing,
        tensor=run.micro_batches * layers * one.tensor,
        waiting=slots * (computed + between) - run.micro_batches * own,
        launching=slots * launched,
        replicas=replicas,
        optimizer=optimizer,
    )


def tokens_per_second(run: RunShape, step: float) -> float:
    """Tokens a second of each GPU."""
    gpus = run.data_parallel_size * run.tensor_model_parallel_size * run.pipeline_model_parallel_size
    return run.micro_batch_size * run.micro_batches * run.data_parallel_size * run.sample_length / step / gpus


def _without_head(run: RunShape) -> float:
    """Share of the stages without a head. A step's parts are the stages' mean, and the rest of the time is waiting."""
    return 1 - 1 / run.pipeline_model_parallel_size


def _one_pass(run: RunShape, rates: Rates, inside_layers: float) -> _Pass:
    """A micro-batch; `inside_layers` is the share of collectives' time there that counts."""
    model, tp, width = run.model, run.tensor_model_parallel_size, BYTES[run.precision]
    h, context = model.hidden_size, model.num_attention_heads * model.kv_channels
    tokens = run.micro_batch_size * run.sample_length
    rate = rates.products * (_FP16 if run.precision == "fp16" else 1)
    qkv = context + 2 * model.num_query_groups * model.kv_channels
    weights = h * (qkv + context) + 3 * h * model.ffn_hidden_size
    # Forward, the input's gradient and the weight's, which a frozen one has not.
    operations = 6 if run.lora is None else 4
    in_fp8 = 1 - 2 * run.fp8_layers / model.num_layers if run.precision == "fp8" else 0.0
    products = operations * tokens * weights / tp / rate * (1 - in_fp8 + in_fp8 / _FP8)
    attention = _attention(run, rates, rate, tokens * context / tp)
    # Elements a token that are read or written: two sums with norms, rotary positions on q, k and v, SwiGLU.
    norms, inside = 16 * h, (4 * qkv + 8 * model.ffn_hidden_size) / tp
    inside += 0 if run.lora is None else _adapters(run, qkv) / tp
    # Every factor of an FP8 product is read in 16 bits and written twice in 8.
    inside += 2 * in_fp8 * (4 * h + (qkv + context + 3 * model.ffn_hidden_size) / tp)
    elements = norms / (tp if run.sequence_parallel else 1) + inside
    kernels = tokens * elements * width / (rates.memory * _KERNELS)
    again = products / (operations / 2) + attention * 2 / 7 + kernels * 0.4 if run.recompute == "full" else 0.0
    rows = (model.vocab_size + run.extra_vocab_size) / tp
    return _Pass(
        products=products,
        attention=attention,
        kernels=kernels,
        recomputing=again,
        tensor=_inside_layers(run, rates, tokens) * inside_layers,
        head=(6 if run.lora is None or run.lora.saved else 4) * tokens * h * rows / rate,
        loss=tokens * rows * width * 4 / (rates.memory * _KERNELS),
    )


def _adapters(run: RunShape, qkv: float) -> float:
    """Elements a token that a layer's adapters read or write: four times each input and each output.

    Forward the input is read, and the output read and written. Backward the output's gradient is read twice, the
    input's read and written, and the input read once more.
    """
    model = run.model
    inputs = 3 * model.hidden_size + model.ffn_hidden_size
    outputs = qkv + 2 * model.hidden_size + 2 * model.ffn_hidden_size
    return 4 * inputs + 4 * outputs


def _attention(run: RunShape, rates: Rates, rate: float, elements: float) -> float:
    """Attention of one layer and micro-batch whose context has so many elements on a GPU, forward and backward.

    Fused attention leaves out what is behind a token: 2 · S FLOPs an element forward, and 2.5 times that backward. The
    unfused one computes all, 4 · S and twice that, and passes its S probabilities a head four times through memory.
    """
    length = run.sample_length
    if run.use_flash_attn:
        return 7 * length * elements / (_FUSED * rate)
    forward = 4 * length * elements / (_UNFUSED * rate)
    scores = elements / run.model.kv_channels * length * BYTES[run.precision]
    again = 0 if run.recompute == "none" else 1
    return (3 + again) * forward + (4 + 2 * again) * scores / rates.memory


def _inside_layers(run: RunShape, rates: Rates, tokens: int) -> float:
    """Tensor parallelism's collectives of one layer and micro-batch: six gathers and four split sums with SP."""
    tp = run.tensor_model_parallel_size
    if tp == 1:
        return 0.0
    count = (10 if run.sequence_parallel else 8) + (2 if run.recompute == "full" else 0)
    sent = count * tokens * run.model.hidden_size * BYTES[run.precision] * (tp - 1) / tp
    return sent / (rates.small_of_two if tp == 2 else rates.small)


def _sent_to_the_next_stage(run: RunShape) -> float:
    """Bytes that a stage sends and receives for one micro-batch: activations, and their gradients."""
    if run.pipeline_model_parallel_size == 1:
        return 0.0
    split = run.tensor_model_parallel_size if run.sequence_parallel else 1
    return 2 * run.micro_batch_size * run.sample_length * run.model.hidden_size * BYTES[run.precision] / split


def _launches(run: RunShape) -> float:
    if run.tensor_model_parallel_size > 1:
        return _LAUNCHES_OF_TENSORS
    return _LAUNCHES_OF_STAGES if run.pipeline_model_parallel_size > 1 else _LAUNCHES


def _replicas(run: RunShape, rates: Rates, gpus_per_node: int, nodes: int) -> float:
    """Gradients in fp32 and weights of the fullest stage, all of it waited for."""
    replicas = run.data_parallel_size
    if replicas == 1:
        return 0.0
    parameters = trained_of_stage(run, 0)
    back = gathered_bytes(run, 0) if run.use_distributed_optimizer else 4 * parameters  # weights, or sums handed back
    sent = (4 * parameters + back) * (replicas - 1) / replicas
    # Replicas of one host send through all the host's network cards that stand for them.
    of_a_host = max(1, gpus_per_node // run.tensor_model_parallel_size)
    return sent / (rates.large if nodes == 1 else min(rates.large, of_a_host * _NETWORK))


def _optimizer(run: RunShape, rates: Rates) -> float:
    owners = run.data_parallel_size if run.use_distributed_optimizer else 1
    cast = 0.0
    if run.precision == "fp8":
        cast = _CAST if owners == 1 else _CAST_OWN / owners + _CAST_GATHERED
    return trained_of_stage(run, 0) * (_UPDATE / owners + cast) / rates.memory
