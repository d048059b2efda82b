"""What is in PEFT's adapter folder, as lines of text."""

from __future__ import annotations

import os
from collections import Counter
from math import prod
from pathlib import Path

from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.lazy import LazyTensor, nbytes
from megatron_patch.formats.peft_tensors import read_adapter
from megatron_patch.language.sentences import fill


def describe_adapter(folder: Path) -> list[str]:
    """Lines about an adapter: rank and scale, the model it was made over, modules, dtypes, numbers, size in MB.

    Raises:
        UserError: it cannot be read, or asks for what is not computed here.
    """
    adapter = read_adapter(folder)
    config = adapter.config
    out = [
        fill(
            "adapter {}: PEFT's LoRA, rank {}, alpha {}, scale {}", folder, config.rank, f"{config.alpha:g}", f"{config.scale:g}"
        )
    ]
    if not config.base:
        out.append(fill("made over: not recorded; --base names it to model_convertor.sh"))
    elif os.path.isdir(config.base):
        out.append(fill("made over: {}", one_line(config.base)))
    else:
        out.append(fill("made over: {}, no folder here; --base names it to model_convertor.sh", one_line(config.base)))
    kinds = Counter(module.rpartition(".")[2] for module in adapter.pairs)
    out.append(fill("{} modules: {}", len(adapter.pairs), one_line(", ".join(f"{kind} {n}" for kind, n in kinds.items()))))
    if adapter.whole:
        said = ", ".join(f"{module} {tuple(tensor.shape)}" for module, tensor in adapter.whole.items())
        out.append(fill("kept whole: {}", one_line(said)))
    tensors: list[LazyTensor] = [*(part for pair in adapter.pairs.values() for part in (pair.a, pair.b)), *adapter.whole.values()]
    types = Counter(str(tensor.dtype) for tensor in tensors)
    out.append(fill("types: {}", ", ".join(f"{kind} ({n})" for kind, n in types.items())))
    size = sum(map(nbytes, tensors))
    return [*out, fill("{} numbers, {} MB", sum(prod(tensor.shape) for tensor in tensors), f"{size / 1e6:.1f}")]
