"""Runs the notebooks of the documentation, each in an empty folder: `make notebooks` stores what they print.

    python docs/notebooks.py [--write] [NAME...]

Stored outputs are those of one run, without times and counts, with the folder's name shortened.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

DOCS = Path(__file__).parent
PLACE = "/home/me/quickstart"
"""Where the stored outputs say that they were made."""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours of a terminal."""
SECONDS = 1800
"""Until a cell is given up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks; all by default")
    parser.add_argument("--write", action="store_true", help="store the outputs in the notebooks")
    args = parser.parse_args()
    # The commands of this environment come first, whatever the shell finds.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for path in [DOCS / f"{name}.ipynb" for name in args.names] or sorted(DOCS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}}).execute()
            shorten(notebook, folder)
        if args.write:
            nbformat.write(notebook, path)
        print(f"{path.name}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells ran")


def shorten(notebook: Any, folder: str) -> None:
    """Take out what is of this machine and this time."""
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = joined([shortened(output, folder) for output in cell.outputs if not about_widgets(output)])
        cell.id = f"c{number:02}"


def about_widgets(output: Any) -> bool:
    """tqdm's advice to install a bar for notebooks."""
    return output.get("name") == "stderr" and "TqdmWarning" in output.text


def shortened(output: Any, folder: str) -> Any:
    if "execution_count" in output:
        output.execution_count = None
    if output.output_type == "stream":
        output.text = ESCAPES.sub("", output.text.replace(folder, PLACE))
    if "image/png" in (data := output.get("data", {})):
        data["image/png"] = smaller(data["image/png"])
    return output


def smaller(png: str) -> str:
    """A picture in 64 colours, a third of the bytes."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    picture.save(file := io.BytesIO(), "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def joined(outputs: list[Any]) -> list[Any]:
    """Neighbouring texts of one stream as one: in how many pieces they came is chance."""
    found: list[Any] = []
    for output in outputs:
        last = found[-1] if found else None
        if output.output_type == "stream" and last is not None and last.get("name") == output.name:
            last.text += output.text
        else:
            found.append(output)
    return found


if __name__ == "__main__":
    main()
