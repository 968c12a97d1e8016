"""The notebook runs from top to bottom, and says what it should."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


def test_quickstart_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 10
    assert not any(cell.outputs for cell in code), "commit the notebook without outputs"
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    printed = [output for output in code[-1].outputs if output.get("name") == "stdout"]  # not what libraries log
    words = "".join(output.text for output in printed)
    assert "no entropy collapse layer" in words
    assert "half of the effect is gone" in words
    assert any("image/png" in output.get("data", {}) for output in code[-1].outputs)
