"""Which algorithms this run's matrix products were measured to be fastest with, kept for the next start.

Measuring takes some twenty seconds of a process's first iteration (kernels/products.py says why). The file lies in
`products/` below OUTPUT_BASEPATH. Its name holds the kind of GPU and the versions of torch and cuBLASLt, for which
alone it is right. It holds places in cuBLASLt's list of candidates, and nothing that runs.
"""

from __future__ import annotations

import megatron_patch.core.device as device

import json
import os
import re
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch

from megatron_patch.checkpoint.local_output import keeps_folder
from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.errors import naming, refusal
from megatron_patch.formats import dtypes
from megatron_patch.kernels import products
from megatron_patch.kernels._cublaslt import FP8, Scaling, Shape, version

_DTYPES = {str(dtype): dtype for dtype in (*(one.torch_dtype for one in dtypes.WEIGHTS), *FP8)}


def read_choices(config: TrainConfig) -> str:
    """Use what an earlier start has measured. Returns a phrase for the log; empty if there is no file."""
    path = _path(config)
    if path is None or not path.is_file():
        return ""
    try:
        known = _read(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} cannot be used ({type(error).__name__}: {error}); products are measured again"
    products.remember(known)
    return f"algorithms of {len(known)} matrix products are those of {path}"


def measure_together(noted: Iterable[Shape]) -> None:
    """Measure what any rank has `noted`, each rank a share of it at the same time, and use what all have found.

    Every rank calls this.
    """
    all_noted = dict.fromkeys(shape for shapes in parallel.from_all_ranks(list(noted)) for shape in shapes)
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for shape in list(all_noted)[rank::ranks]:
        products.measure(shape, device.local_device())
    for choices in parallel.from_all_ranks(products.choices()):
        products.remember(choices)


def write_choices(config: TrainConfig) -> str:
    """Write what all ranks have measured in their first iteration, in one file. Every rank calls this.

    Returns:
        On every rank why it could not be written, as a sentence; the next start then measures again. Empty if it was.
    """
    path = _path(config)
    if path is None:
        return ""
    known = {shape: choice for choices in parallel.from_all_ranks(products.choices()) for shape, choice in choices.items()}
    refused = ""
    if known and keeps_folder(config):
        try:
            _write(path, known)
        except OSError as error:
            refused = f"measurements of matrix products are not kept for the next start ({refusal(error).rstrip('.')})."
    return next(filter(None, parallel.from_all_ranks(refused)), "")


def _write(path: Path, known: dict[Shape, products.Choice]) -> None:
    rows = [{**_plain(shape), **choice._asdict()} for shape, choice in known.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with naming(beside):
        beside.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    os.replace(beside, path)


def _path(config: TrainConfig) -> Path | None:
    """The file's path; None without a GPU."""
    if not device.HAS_CUDA:
        return None
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name())
    return Path(config.output_path) / "products" / f"{gpu}_torch-{torch.__version__}_cublaslt-{version()}.json"


def _read(path: Path) -> dict[Shape, products.Choice]:
    """The choices in a file.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is no file of choices.
    """
    return dict(_entry(row) for row in json.loads(path.read_text(encoding="utf-8")))


def _plain(shape: Shape) -> dict[str, Any]:
    """A product's shape as JSON values."""
    return {key: str(value) if isinstance(value, torch.dtype) else value for key, value in asdict(shape).items()}


def _entry(row: dict[str, Any]) -> tuple[Shape, products.Choice]:
    """One row of the file, with every value checked to be of its kind.

    Raises:
        KeyError, TypeError: it is not.
    """
    # FP8 products alone have the fields with a default.
    values = {field.name: row[field.name] for field in fields(Shape) if field.name in row or field.default is MISSING}
    for name in values.keys() & {"dtype", "out_dtype", "b_dtype"}:
        values[name] = None if values[name] is None else _DTYPES[values[name]]
    for name in values.keys() & {"scaling_a", "scaling_b"}:
        values[name] = None if values[name] is None else Scaling(values[name])
    numbers = [*(values[name] for name in ("m", "n", "k")), row["place"], row["candidates"]]
    switches = [values["transpose_a"], values["transpose_b"], values.get("fast_sums", False)]
    if not all(type(number) is int for number in numbers) or not all(type(switch) is bool for switch in switches):
        raise TypeError(f"{row} is not a product's choice")
    return Shape(**values), products.Choice(row["place"], row["candidates"])
