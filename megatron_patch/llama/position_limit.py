"""Sequences longer than the model was made for. They are refused, or with a flag trained on under a new limit.

Imports no torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from megatron_patch.formats.json_files import is_whole_number, json_object
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.llama.rope_scaling import DEFAULT, DYNAMIC

FLAG = "--allow-longer-sequences"


def length_finding(model: LlamaConfig, length: int) -> str | None:
    """A sentence if rows of `length` tokens are too long for `model`, with what to do; else None."""
    if length <= model.position_limit:
        return None
    counted = f"max_position_embeddings {model.max_position_embeddings}"
    if model.rope_type != DEFAULT:
        counted += f", times the factor {model.rope_factor:g} of its {model.rope_type} rope_scaling"
    return (
        f"the model is made for {model.position_limit} positions ({counted}): write {model.position_limit} or less, or add "
        f"{FLAG} after the last argument, which trains on longer ones and writes the new limit into config.json."
    )


def with_positions(model: LlamaConfig, length: int) -> tuple[LlamaConfig, str | None]:
    """(`model` with a limit of at least `length` tokens, a sentence that says what changed or None).

    Under dynamic scaling nothing changes. There max_position_embeddings is the length at which scaling begins, and the
    rotary angles depend on it; the model computes any length.
    """
    if length <= model.position_limit:
        return model, None
    if model.rope_type == DYNAMIC:
        sentence = (
            f"{FLAG}: {length} positions, more than the model's {model.position_limit}; config.json stays as it is, "
            "since dynamic rope_scaling begins at its max_position_embeddings and goes on to any length."
        )
        return model, sentence
    limit = math.ceil(length / model.rope_factor)
    sentence = f"{FLAG}: the model's max_position_embeddings becomes {limit}, in its checkpoints and in what is exported."
    return replace(model, max_position_embeddings=limit), f"{sentence} It was {model.max_position_embeddings}."


def raised_limit(path: Path, model: LlamaConfig) -> str | None:
    """The text of the config.json at `path` with the limit of `model`; None if its own limit is as high already."""
    content = json_object(path)
    limit = content.get("max_position_embeddings")
    if is_whole_number(limit) and limit >= model.max_position_embeddings:
        return None
    content["max_position_embeddings"] = model.max_position_embeddings
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
