"""Which model a checkpoint of 2023 holds.

Its config.json tells, where the user has put one there; else its tensors and recorded arguments.
"""

from __future__ import annotations

from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.formats.vocabulary_2023 import VocabularyRows, recorded_vocab_size
from megatron_patch.llama.model_config import LLAMA_SIZES, LlamaConfig, read_hf_config, shape_differences
from megatron_patch.weights.ranks_2023 import Ranks


def config_2023(
    root: Path, ranks: Ranks, found: VocabularyRows, fallback: LlamaConfig | None
) -> tuple[LlamaConfig, tuple[str, ...]]:
    """(configuration, notes on what was assumed).

    Args:
        root: where a config.json may lie.
        ranks: every rank's file.
        found: what the files say about the vocabulary.
        fallback: the size that the user named, for what neither tensors nor arguments tell.

    Raises:
        UserError: the recorded arguments lack a number that no tensor tells, or contradict the tensors.
    """
    if (root / "config.json").is_file():
        config = read_hf_config(root)
        if config.num_layers != len(ranks.layers):
            raise UserError(
                f"{root / 'config.json'} says {config.num_layers} layers, and {ranks.folder} has {len(ranks.layers)}."
            )
        return config, ()
    return _from_tensors(root, ranks, found, fallback)


def _from_tensors(
    root: Path, ranks: Ranks, found: VocabularyRows, fallback: LlamaConfig | None
) -> tuple[LlamaConfig, tuple[str, ...]]:
    hidden = ranks.shards(0, "attention_norm")[0].shape[0]
    heads = found.recorded("num_attention_heads") or (fallback.num_attention_heads if fallback else None)
    vocabulary = recorded_vocab_size(found) or (fallback.vocab_size if fallback else None)
    for name, number in (("num_attention_heads", heads), ("padded_vocab_size", vocabulary)):
        if number is None:
            raise UserError(f"{ranks.folder} does not record {name}; put the model's config.json into {root}.")
    assert heads is not None and vocabulary is not None
    if hidden % heads:
        raise UserError(f"{ranks.folder} records {heads} attention heads, which do not divide its hidden size {hidden}.")
    groups = _groups(ranks, heads, hidden // heads)
    _check_groups(ranks, found, groups)
    base = fallback or LlamaConfig(len(ranks.layers), hidden, 1, heads, heads)
    config = LlamaConfig(
        num_layers=len(ranks.layers),
        hidden_size=hidden,
        ffn_hidden_size=ranks.shards(0, "down")[0].shape[1] * ranks.width,
        num_attention_heads=heads,
        num_query_groups=groups,
        vocab_size=vocabulary,
        # The original's scripts give SEQ_LEN as --max-position-embeddings, so what is recorded may be less than the
        # model's limit.
        max_position_embeddings=max(base.max_position_embeddings, found.recorded("max_position_embeddings") or 0),
        norm_epsilon=_recorded_number(found, ("norm_epsilon", "layernorm_epsilon"), base.norm_epsilon),
        rotary_base=_recorded_number(found, ("rotary_base",), base.rotary_base),
    )
    return config, (_assumed(root, config),)


def _recorded_number(found: VocabularyRows, names: tuple[str, ...], otherwise: float) -> float:
    """The first of `names` that the arguments hold as a positive number, else `otherwise`.

    Only training records these.
    """
    values = [getattr(found.arguments, name, None) for name in names]
    return next((float(value) for value in values if isinstance(value, (int, float)) and value > 0), otherwise)


def _assumed(root: Path, config: LlamaConfig) -> str:
    """The note on what was assumed. It names the published sizes of the same shapes that have other values."""
    values = (config.max_position_embeddings, config.norm_epsilon)
    others = [
        f"{name} has {size.max_position_embeddings}, {size.norm_epsilon}"
        for name, size in LLAMA_SIZES.items()
        if not shape_differences(size, config) and (size.max_position_embeddings, size.norm_epsilon) != values
    ]
    choice = f" ({'; '.join(others)}: write that as MN if that is the model)" if others else ""
    return (
        f"No config.json in {root}: assumed are max_position_embeddings {values[0]} and rms_norm_eps {values[1]}{choice}, "
        f"rope_theta {config.rotary_base}; put the model's own config.json there to be sure."
    )


def _groups(ranks: Ranks, heads: int, head: int) -> int:
    """The number of KV heads, told by the rows of the key and value projections; `head` is D."""
    if ranks.has(0, "key_value"):
        rows = sum(shard.shape[0] for shard in ranks.shards(0, "key_value"))
    else:
        rows = sum(shard.shape[0] for shard in ranks.shards(0, "qkv")) - heads * head
    groups = rows // (2 * head)
    if groups < 1 or rows % (2 * head) or heads % groups:
        raise UserError(
            f"{ranks.folder} records {heads} attention heads, and its keys and values have {rows} rows, which no number of "
            "KV heads makes; put the model's own config.json beside it."
        )
    return groups


def _check_groups(ranks: Ranks, found: VocabularyRows, groups: int) -> None:
    """Raise where the arguments contradict the tensors.

    num_query_groups is 1 for MHA too, so it counts only where group_query_attention is true.
    """
    recorded = found.recorded("num_query_groups")
    if getattr(found.arguments, "group_query_attention", False) is True and recorded not in (None, groups):
        raise UserError(f"{ranks.folder} records {recorded} KV heads (num_query_groups), and its tensors have {groups}.")
