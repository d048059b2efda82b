"""nodes.json, as another program or a careless edit may leave it: a sentence, and no traceback."""

from __future__ import annotations

import json

import pytest

from megatron_patch.errors import UserError
from megatron_patch.formats.nodes_file import NODES, NodeFiles, lacking_sentence, nodes_file, read_nodes

NODE = {"host": "a", "files": ["x.distcp"]}


@pytest.mark.parametrize(
    "content",
    [
        "[]", "{}", "nothing", {"nodes": []}, {"nodes": {}}, {"nodes": [7]}, {"nodes": [{**NODE, "host": 7}]},
        {"nodes": [{**NODE, "files": "x.distcp"}]}, {"nodes": [{**NODE, "files": [7]}]},
        {"nodes": [{**NODE, "files": ["../x.distcp"]}]}, {"nodes": [{**NODE, "files": ["/etc/passwd"]}]},
    ],
)  # fmt: skip
def test_what_is_no_list_of_nodes_is_a_sentence(tmp_path, content):
    (tmp_path / NODES).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError):
        read_nodes(tmp_path)


def test_names_that_no_file_can_have_are_files_that_are_not_there(tmp_path):
    names = ("x\0y", "x" * 5000, "..", "__0_0.distcp")
    (tmp_path / NODES).write_bytes(nodes_file([NodeFiles("a\nb", names), NodeFiles("c", ("here.distcp",))]))
    (tmp_path / "here.distcp").touch()
    said = lacking_sentence(tmp_path)
    assert "holds the files of 1 of 2 nodes" in said and "node 0 (a\\nb) keeps x\\x00y, xxx" in said and "\n" not in said
    assert len(said) < 2500
