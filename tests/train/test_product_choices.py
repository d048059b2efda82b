"""Measured algorithms of products are found again by the next start, and nothing else is taken from the file."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

import json
from types import SimpleNamespace

import pytest
import torch

from megatron_patch.core import parallel
from megatron_patch.kernels import products
from megatron_patch.kernels._cublaslt import Scaling, Shape
from megatron_patch.kernels.fp8 import E4M3, E5M2
from megatron_patch.train import product_choices
from tests.tiny import tiny_config

SHAPE = Shape(4096, 2048, 1024, True, False, torch.bfloat16, torch.float32)


@pytest.fixture
def file(monkeypatch, tmp_path):
    path = tmp_path / "products" / "gpu.json"
    monkeypatch.setattr(product_choices, "_path", lambda config: path)
    monkeypatch.setattr(products, "_remembered", {})
    monkeypatch.setattr(products, "_chosen", {})
    return path


def test_a_start_finds_what_another_has_measured(file, alone, monkeypatch):
    candidates = [object() for _ in range(5)]
    products._chosen[SHAPE, torch.device("cuda", 0)] = (SimpleNamespace(algorithms=candidates), candidates[3])
    other = Shape(8, 8, 8, True, False, E4M3, torch.float32, E5M2, Scaling.TENSOR, Scaling.ROW, True)
    monkeypatch.setattr(parallel, "from_all_ranks", lambda here: [here, {other: products.Choice(0, 2)}])
    product_choices.write_choices(tiny_config())
    products._chosen.clear()
    assert "algorithms of 2 matrix products" in product_choices.read_choices(tiny_config())
    assert products._remembered == {SHAPE: products.Choice(3, 5), other: products.Choice(0, 2)}
    assert products._known(SimpleNamespace(algorithms=candidates), SHAPE) is candidates[3]
    assert products._known(SimpleNamespace(algorithms=candidates[:4]), SHAPE) is None, "another library's list"


@pytest.mark.parametrize(
    "change", [{"place": "0"}, {"m": 1.5}, {"dtype": "torch.int8"}, {"transpose_a": 1}, {"k": None}, {"scaling_a": 9}]
)
def test_a_damaged_file_is_said_and_measured_again(file, alone, change):
    file.parent.mkdir()
    row = dict(m=8, n=8, k=8, transpose_a=False, transpose_b=True, dtype="torch.float16", out_dtype="torch.float32")
    file.write_text(json.dumps([{**row, "place": 1, "candidates": 3, **change}]))
    assert "cannot be used" in product_choices.read_choices(tiny_config())
    assert products._remembered == {}


def test_a_place_outside_the_list_is_measured_again(file):
    products.remember({SHAPE: products.Choice(7, 5)})
    assert products._known(SimpleNamespace(algorithms=[object()] * 5), SHAPE) is None


def test_where_there_is_no_gpu_there_is_no_file(tmp_path):
    config = tiny_config(output_path=str(tmp_path))
    product_choices.write_choices(config)
    assert product_choices.read_choices(config) == "" and not list(tmp_path.iterdir())


def test_each_rank_measures_a_share_of_what_any_has_met(file, alone, monkeypatch):
    shapes = [Shape(8 * n, 8, 8, False, False, torch.float16, torch.float16) for n in range(1, 6)]
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    measured, found = [], {shape: products.Choice(2, 4) for shape in shapes}
    monkeypatch.setattr(products, "measure", lambda shape, _: measured.append(shape))
    answers = iter([[shapes[:3], [*shapes[2:], shapes[0]]], [{}, found]])
    monkeypatch.setattr(parallel, "from_all_ranks", lambda here: next(answers))
    product_choices.measure_together(shapes[:3])
    assert measured == [shapes[1], shapes[3]] and products._remembered == found
