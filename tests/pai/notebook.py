"""Run the DSW notebook as a user does with "Run all", and store what it shows.

    python -m tests.pai.notebook WORK_DIR

runs it with that working directory, which holds PAI-Megatron-Patch, and writes the outputs into the file. For paths
like those of a DSW instance, WORK_DIR is /mnt/workspace.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.launching import ROOT, environment

NOTEBOOK = ROOT / "examples" / "llama2" / "llama2_dsw.ipynb"


def execute(work: Path, timeout: int = 900, **more: str) -> nbformat.NotebookNode:
    """The notebook after a run of all cells in a kernel of this Python; WORK_DIR is `work`; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # A port that a test of this process listens at must not become the runs' own.
    kernel = environment() | {"WORK_DIR": str(work), **more}
    where = {"metadata": {"path": str(work)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=where, coalesce_streams=True)
    return client.execute(env=kernel)


if __name__ == "__main__":
    executed = execute(Path(sys.argv[1]))
    for cell in executed.cells:
        cell.metadata.pop("execution", None)  # times of the run
    nbformat.write(executed, NOTEBOOK)
