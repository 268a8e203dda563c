"""A copy of the installed packages, for a gateway to run and a test to edit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shm", "workers", "gateway", "ops")


def copy_packages(folder: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package,
            folder / package,
            ignore=lambda directory, names: {
                name
                for name in names
                if (Path(directory) / name).is_dir()
                and name in ("ring", "engine", "swarm", "target", "__pycache__")
            },
        )


def edit(path: Path, old: str, new: str) -> None:
    """Replace a file as an installer does: never the one that somebody may be reading."""
    text = path.read_text()
    assert text.count(old) == 1
    edited = path.with_suffix(".edited")
    edited.write_text(text.replace(old, new))
    # Python takes what it has compiled of a source for current if size and second are the same.
    later = path.stat().st_mtime + 2
    os.utime(edited, (later, later))
    edited.replace(path)


class Gate:
    """Stands before the code of one module in `folder`: while it is shut, whoever runs that module
    waits at its beginning."""

    def __init__(self, folder: Path, module: str) -> None:
        self._bar = folder / f"{module.replace('/', '-')}.shut"
        edit(
            folder / module / "__main__.py",
            "from __future__ import annotations\n",
            "from __future__ import annotations\n"
            "import pathlib, threading\n"
            f"while pathlib.Path({str(self._bar)!r}).exists():\n"
            "    threading.Event().wait(0.01)\n",
        )

    def shut(self) -> None:
        self._bar.touch()

    def open(self) -> None:
        self._bar.unlink()


def set_version(folder: Path, version: str) -> None:
    """What `importlib.metadata` says of the packages in `folder`."""
    metadata = folder / "tidegate.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: tidegate\nVersion: {version}\n"
    )
