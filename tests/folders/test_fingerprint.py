"""What nodes compare before they train: the data and the weights, each by the argument that names it."""

from __future__ import annotations

import shutil
from dataclasses import replace

from megatron_patch.data_paths import JsonFiles
from megatron_patch.folders.fingerprint import compared_by_nodes, observe
from tests.launching import GOLDEN
from tests.tiny import tiny_config


def test_each_node_s_copies_count_and_not_where_they_lie_nor_what_a_download_keeps_beside_them(tmp_path):
    def node(name):
        """The configuration of a node with copies of its own."""
        folder = tmp_path / name
        shutil.copytree(GOLDEN / "hf_mha", folder / "model")
        (folder / "model/.cache").mkdir()
        (folder / "model/.cache/downloaded.metadata.txt").write_text(name)
        (folder / "model/README.md").write_text(name)
        for one in ("train", "valid"):
            (folder / f"{one}.json").write_text(f'[{{"instruction": "{one}", "output": "1"}}]')
        data = {f"{one}_data": JsonFiles(one, (str(folder / f"{one}.json"),)) for one in ("train", "valid")}
        return replace(tiny_config(load=str(folder / "model"), epochs=1), **data)

    def inputs(config, reads_load=True):
        return compared_by_nodes(config, observe(config), reads_load=reads_load)

    first, second = node("first"), node("second")
    assert [*inputs(first)] == ["TRAIN_DATASET_PATH", "VALID_DATASET_PATH", "PRETRAIN_CHECKPOINT_PATH"]
    assert inputs(first) == inputs(second) and all(inputs(first).values())
    (tmp_path / "second/valid.json").write_text("[]")
    weights = next((tmp_path / "second/model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert [name for name in inputs(first) if inputs(first)[name] != inputs(second)[name]] == [
        "VALID_DATASET_PATH", "PRETRAIN_CHECKPOINT_PATH",
    ]  # fmt: skip
    assert "PRETRAIN_CHECKPOINT_PATH" not in inputs(first, reads_load=False), "a run that goes on does not read it"
    assert [*inputs(replace(first, epochs=0, valid_data=None), reads_load=False)] == ["DATASET_PATH"]
