"""What model a checkpoint of 2023 holds: its config.json where the user has put one there, else its tensors and arguments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_patch.model_config import LlamaConfig, read_hf_config

if TYPE_CHECKING:
    from megatron_patch.checkpoint.source_2023 import Ranks


def config_2023(root: Path, ranks: Ranks, fallback: LlamaConfig | None) -> tuple[LlamaConfig, tuple[str, ...]]:
    """(configuration, notes on what was assumed).

    Raises:
        ValueError: the recorded arguments lack a number that no tensor tells.
    """
    if (root / "config.json").is_file():
        config = read_hf_config(root)
        if config.num_layers != len(ranks.layers):
            raise ValueError(
                f"{root / 'config.json'} says {config.num_layers} layers, and {ranks.folder} has {len(ranks.layers)}."
            )
        return config, ()
    return _from_tensors(ranks, fallback)


def _from_tensors(ranks: Ranks, fallback: LlamaConfig | None) -> tuple[LlamaConfig, tuple[str, ...]]:
    arguments = ranks.files[0][0].arguments
    numbers = {}
    for name in ("num_attention_heads", "padded_vocab_size"):
        numbers[name] = getattr(arguments, name, None)
        if numbers[name] is None:
            raise ValueError(f"{ranks.folder} does not record {name}; put the model's config.json into {ranks.folder.parent}.")
    width = len(ranks.files[0])
    hidden = ranks.shards(0, "input_layernorm.weight")[0].shape[0]
    heads = numbers["num_attention_heads"]
    base = fallback or LlamaConfig(len(ranks.layers), hidden, 1, heads, heads)
    config = LlamaConfig(
        num_layers=len(ranks.layers),
        hidden_size=hidden,
        ffn_hidden_size=ranks.shards(0, "mlp.dense_4h_to_h.weight")[0].shape[1] * width,
        num_attention_heads=heads,
        num_query_groups=_groups(ranks, heads, hidden // heads),
        vocab_size=getattr(arguments, "orig_vocab_size", None) or numbers["padded_vocab_size"],
        max_position_embeddings=base.max_position_embeddings,
        norm_epsilon=base.norm_epsilon,
        rotary_base=base.rotary_base,
    )
    note = (
        f"No config.json in {ranks.folder.parent}: assumed are max_position_embeddings {config.max_position_embeddings}, "
        f"rms_norm_eps {config.norm_epsilon}, rope_theta {config.rotary_base}; put the model's own config.json there to "
        "be sure."
    )
    return config, (note,)


def _groups(ranks: Ranks, heads: int, head: int) -> int:
    """KV groups, from the rows of the key and value projections."""
    width = len(ranks.files[0])
    if ranks.has(0, "self_attention.key_value.weight"):
        return ranks.shards(0, "self_attention.key_value.weight")[0].shape[0] * width // (2 * head)
    rows = ranks.shards(0, "self_attention.query_key_value.weight")[0].shape[0] * width
    return (rows - heads * head) // (2 * head)
