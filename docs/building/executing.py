"""Tutorials are run for their pages: `python -m docs.building.executing SCRIPT` prints as JSON what each cell printed.

Every script runs in a process of its own, as a notebook would. What it printed is kept until the script, the package, or the
versions of Python and JAX change.
"""

import contextlib
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from docs.building import tutorials
from docs.building.copies import ROOT
from jaxunlearn import cores

HEAVY = 2  # cores that one tutorial keeps busy while it compiles and runs


def printed_by(path: Path) -> list[str]:
    """Run the cells of a script in this process.

    Args:
        path: of the script.

    Returns:
        What each cell of code printed.
    """
    names: dict[str, Any] = {"__name__": "__main__", "__file__": str(path)}
    found = []
    for cell in tutorials.read(path.read_text()).cells:
        if not cell.is_text:
            program = compile("\n" * (cell.line - 1) + cell.body, str(path), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(program, names)
            found.append(out.getvalue())
    return found


def printed_by_all(folder: Path) -> dict[str, list[str]]:
    """What all tutorials print.

    Args:
        folder: where it is kept.

    Returns:
        By name, what each cell of code printed.

    Raises:
        RuntimeError: a tutorial failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max(1, cores.available() // HEAVY)) as pool:
        return dict(
            zip(tutorials.scripts(), pool.map(lambda path: _kept(folder, path), tutorials.scripts().values()), strict=True)
        )


def _kept(folder: Path, path: Path) -> list[str]:
    kept, digest = folder / f"{path.stem}.json", _digest(path)
    found: Mapping[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if found.get("digest") != digest:
        command = [sys.executable, "-W", "error", "-m", "docs.building.executing", str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{path.name} failed:\n{done.stderr}")
        found = {"digest": digest, "printed": json.loads(done.stdout)}
        kept.write_text(json.dumps(found))
    return found["printed"]


def _digest(path: Path) -> str:
    read = hashlib.sha256(f"{sys.version} {jax.__version__}".encode())
    for file in (path, *sorted((ROOT / "jaxunlearn").rglob("*.py"))):
        read.update(file.read_bytes())
    return read.hexdigest()


if __name__ == "__main__":
    json.dump(printed_by(Path(sys.argv[1])), sys.stdout)
