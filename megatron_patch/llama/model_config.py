"""The numbers that define a LLaMA model, the published sizes, and the conversion from and to Hugging Face's
config.json.

Shape letters: B batch, S sequence, H hidden, N heads, G KV groups, D head size, F ffn, V vocabulary. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import finite_in, json_object, one_line, shown, whole_in
from megatron_patch.formats.placeholders import refuse_placeholder
from megatron_patch.llama.rope_scaling import DEFAULT, DYNAMIC, LINEAR, SUPPORTED, Rope, dynamic_ntk_base, read_rope, rope_keys

# Keys of config.json and the values that this model computes. Any other value would mean another computation.
_REQUIRED_VALUES: dict[str, tuple[Any, ...] | None] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "tie_word_embeddings": (False,),
    "attention_dropout": (0, 0.0),
    "pretraining_tp": None,  # any value: it only says in how many parts transformers computes the same products
}

# The range of each whole number of LlamaConfig. The upper ends are far above every model that exists, and low enough
# for loops over layers and products of sizes.
_WHOLE = {
    "num_layers": (1, 4096),
    "hidden_size": (1, 1 << 20),
    "ffn_hidden_size": (1, 1 << 24),
    "num_attention_heads": (1, 1 << 16),
    "num_query_groups": (1, 1 << 16),
    "vocab_size": (1, 1 << 28),
    "kv_channels": (0, 1 << 16),
    "max_position_embeddings": (1, (1 << 31) - 1),
}
_HF_KEYS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "vocab_size": "vocab_size",
    "head_dim": "kv_channels",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "norm_epsilon",
    "rope_theta": "rotary_base",
}
_FINITE = {"norm_epsilon": (0.0, 1.0), "rotary_base": (0.0, 1e30)}


_REMEDIES = {
    "tie_word_embeddings": "; give the output layer a matrix of its own: in transformers, copy embed_tokens.weight to "
    "lm_head.weight, set the key to false, and save",
    "attention_bias": "; a LLaMA's projections have no biases",
    "mlp_bias": "; a LLaMA's projections have no biases",
}
_UNQUANTIZED = "take the folder that it was made from, with float16 or bfloat16 weights"


@dataclass(frozen=True)
class LlamaConfig:
    """The architecture, in megatron-core's terms. A field's comment names config.json's key and the shape letter.

    Raises:
        UserError: a number is out of range, or two of them do not fit together.
    """

    num_layers: int  # num_hidden_layers
    hidden_size: int  # hidden_size, H
    ffn_hidden_size: int  # intermediate_size, F
    num_attention_heads: int  # num_attention_heads, N
    num_query_groups: int  # num_key_value_heads, G
    vocab_size: int = 32000  # vocab_size, V without extra rows
    kv_channels: int = 0  # head_dim, D; 0 means hidden_size / num_attention_heads
    max_position_embeddings: int = 4096
    norm_epsilon: float = 1e-5  # rms_norm_eps
    rotary_base: float = 10000.0  # rope_theta
    rope_type: str = DEFAULT  # rope_scaling.rope_type: default, linear or dynamic
    rope_factor: float = 1.0  # rope_scaling.factor

    def __post_init__(self) -> None:
        for name, (least, most) in _WHOLE.items():
            whole_in(vars(self), name, least, most)
        for name, (above, limit) in _FINITE.items():
            finite_in(vars(self), name, above, limit)
        if self.kv_channels == 0:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(
                    f"hidden_size is {self.hidden_size}, which the {self.num_attention_heads} attention heads do not divide; "
                    "it must be a multiple of them, or head_dim must say their size."
                )
            object.__setattr__(self, "kv_channels", self.hidden_size // self.num_attention_heads)
        if self.kv_channels % 2:
            raise UserError(f"The size of an attention head is {self.kv_channels}; rotary embeddings need an even one.")
        if self.num_attention_heads % self.num_query_groups:
            raise UserError(
                f"num_key_value_heads is {self.num_query_groups}, which does not divide the "
                f"{self.num_attention_heads} attention heads; it must."
            )
        finite_in(vars(self), "rope_factor", 0.0, 1e6)
        if self.rope_type not in SUPPORTED or self.rope_factor < 1:
            raise UserError(
                f"Rotary scaling is {self.rope_type!r} by {self.rope_factor!r}; supported are {', '.join(SUPPORTED)}, "
                "by a factor of at least 1."
            )
        if self.rope_type == DYNAMIC and self.kv_channels <= 2:
            raise UserError(f"The head size is {self.kv_channels}; dynamic rotary scaling needs more than 2.")

    @property
    def position_limit(self) -> int:
        """How many positions the model is made for, in tokens.

        That is max_position_embeddings times the factor of a linear or dynamic scaling. A config.json with a scaling
        keeps the limit that the model was pre-trained with. vLLM computes the same limit; transformers has none.
        """
        return int(self.max_position_embeddings * self.rope_factor)

    @property
    def interpolation_factor(self) -> float:
        """By what linear scaling divides the rotary frequencies; 1 without it."""
        return self.rope_factor if self.rope_type == LINEAR else 1.0

    def rotary_base_of(self, length: int) -> float:
        """The rotary base of a sequence of `length`; only dynamic scaling makes it depend on that."""
        if self.rope_type != DYNAMIC:
            return self.rotary_base
        return dynamic_ntk_base(self.rotary_base, self.kv_channels, length, self.max_position_embeddings, self.rope_factor)

    def parameter_count(self, extra_vocab_size: int = 0) -> int:
        """The number of weights, embedding and output layer included."""
        h, d = self.hidden_size, self.kv_channels
        attention = 2 * h * self.num_attention_heads * d + 2 * h * self.num_query_groups * d
        layer = attention + 3 * h * self.ffn_hidden_size + 2 * h
        return self.num_layers * layer + 2 * (self.vocab_size + extra_vocab_size) * h + h

    def flops_per_token(self, seq_length: int, extra_vocab_size: int = 0, is_frozen: bool = False) -> float:
        """Floating-point operations of the forward and the backward pass for one token.

        `is_frozen`: the weights get no gradient (LoRA), which saves a third of their operations.

        6·(P − V·H) + 6·L·S·H for P weights and L layers: the formula of PaLM's appendix B (arXiv:2204.02311), with half
        of the attention, since a causal query sees half of the keys on average.
        """
        embedding = (self.vocab_size + extra_vocab_size) * self.hidden_size
        weights = self.parameter_count(extra_vocab_size) - embedding
        width = self.num_attention_heads * self.kv_channels
        return (4.0 if is_frozen else 6.0) * weights + 6.0 * self.num_layers * seq_length * width


LLAMA_SIZES: dict[str, LlamaConfig] = {
    "llama-7b": LlamaConfig(32, 4096, 11008, 32, 32, max_position_embeddings=2048, norm_epsilon=1e-6),
    "llama-13b": LlamaConfig(40, 5120, 13824, 40, 40, max_position_embeddings=2048, norm_epsilon=1e-6),
    "llama-30b": LlamaConfig(60, 6656, 17920, 52, 52, max_position_embeddings=2048, norm_epsilon=1e-6),
    "llama-65b": LlamaConfig(80, 8192, 22016, 64, 64, max_position_embeddings=2048),
    "llama2-7b": LlamaConfig(32, 4096, 11008, 32, 32),
    "llama2-13b": LlamaConfig(40, 5120, 13824, 40, 40),
    "llama2-70b": LlamaConfig(80, 8192, 28672, 64, 8),
    # Small enough for a laptop without a GPU. All sizes differ, and there are two KV groups: a swapped axis shows.
    "tiny": LlamaConfig(4, 128, 352, 8, 2, vocab_size=2048, max_position_embeddings=2048),
}

# MODEL_SIZE of the training scripts → a size above.
TRAINING_SIZES = {"7B": "llama2-7b", "13B": "llama2-13b", "70B": "llama2-70b", "tiny": "tiny"}

# What decides the shapes of the weights. Position limit, epsilon and rotary base may differ within one size.
_SHAPE_FIELDS = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")


def shape_differences(size: LlamaConfig, actual: LlamaConfig) -> list[str]:
    """A phrase for each field in which `actual` has other shapes than the named `size`; none if they agree."""
    return [
        f"{name} is {getattr(actual, name)} where that size has {getattr(size, name)}"
        for name in _SHAPE_FIELDS
        if getattr(size, name) != getattr(actual, name)
    ]


def refused_features(hf_config: Mapping[str, Any]) -> list[str]:
    """A phrase for each thing in a config.json that this model would compute wrongly."""
    found = []
    for key, allowed in _REQUIRED_VALUES.items():
        if allowed is not None and key in hf_config and hf_config[key] not in allowed:
            found.append(f"{key} = {shown(hf_config[key])} (supported: {allowed[0]!r}{_REMEDIES.get(key, '')})")
    quantization = hf_config.get("quantization_config")
    if quantization:
        found.append(f"quantization_config {_quantization_method(quantization)} (supported: unquantized weights; {_UNQUANTIZED})")
    return found


def _quantization_method(quantization: object) -> str:
    """How a quantization_config is called in a sentence: GPTQ, AWQ, bitsandbytes, fp8 …"""
    if not isinstance(quantization, Mapping):
        return f"= {shown(quantization)}"
    bits = {"load_in_4bit": "bitsandbytes, 4 bits", "load_in_8bit": "bitsandbytes, 8 bits"}
    named = [name for key, name in bits.items() if quantization.get(key) is True]
    return f"of {named[0] if named else one_line(quantization.get('quant_method', 'an unnamed method'))}"


def from_hf_config(hf_config: Mapping[str, Any]) -> LlamaConfig:
    """The `LlamaConfig` that the content of a Hugging Face config.json describes.

    Raises:
        UserError: it asks for a feature that this model lacks, a key that decides a shape is missing, or a number is
            out of range.
    """
    refused = refused_features(hf_config)
    if refused:
        raise UserError(f"it asks for what this LLaMA does not compute: {'; '.join(refused)}.")
    needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    missing = [key for key in needed if hf_config.get(key) is None]
    if missing:
        raise UserError(f"it lacks {', '.join(missing)}; a LLaMA config.json has all of {', '.join(needed)}.")
    heads, rope = hf_config["num_attention_heads"], read_rope(hf_config)
    groups, head_size = hf_config.get("num_key_value_heads"), hf_config.get("head_dim")
    numbers = {
        "num_hidden_layers": hf_config["num_hidden_layers"],
        "hidden_size": hf_config["hidden_size"],
        "intermediate_size": hf_config["intermediate_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads if groups is None else groups,
        "vocab_size": hf_config["vocab_size"],
        "head_dim": 0 if head_size is None else head_size,
        "max_position_embeddings": hf_config.get("max_position_embeddings", 2048),
        "rms_norm_eps": hf_config.get("rms_norm_eps", 1e-6),
        "rope_theta": rope.theta,
    }
    # LlamaConfig checks the ranges again. Here the sentence names config.json's own key.
    for key, name in _HF_KEYS.items():
        if name in _WHOLE:
            whole_in(numbers, key, *_WHOLE[name])
        else:
            numbers[key] = finite_in(numbers, key, *_FINITE[name])
    shape = {name: numbers[key] for key, name in _HF_KEYS.items()}
    return LlamaConfig(**shape, rope_type=rope.rope_type, rope_factor=rope.factor)


def to_hf_config(config: LlamaConfig, *, dtype: str, extra_vocab_size: int = 0) -> dict[str, Any]:
    """The content of a config.json for `config`; `dtype` is `float16`, `bfloat16` or `float32`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": config.kv_channels,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.ffn_hidden_size,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_query_groups,
        "rms_norm_eps": config.norm_epsilon,
        **rope_keys(Rope(config.rotary_base, config.rope_type, config.rope_factor)),
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size + extra_vocab_size,
    }


def read_hf_config(folder: str | Path) -> LlamaConfig:
    """The `LlamaConfig` of the config.json in `folder`.

    Raises:
        UserError: the file is missing, is not a JSON object, or describes a model that this one is not.
    """
    path = Path(folder) / "config.json"
    if path.is_file():
        refuse_placeholder(path)
    try:
        content = json_object(path)
    except FileNotFoundError:
        raise UserError(f"There is no config.json in {folder}; copy the model's own there.") from None
    try:
        return from_hf_config(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
