"""Programs in Rust that commands run: compiled here in a checkout, else beside the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gateway.errors import TidegateError

ROOT = Path(__file__).resolve().parents[1]


def directory(package: str, program: str) -> Path:
    """Where the programs of a Rust package are, of which `program` is one.

    Raises TidegateError where they are neither there nor can be compiled.
    """
    if not (ROOT / "Cargo.toml").exists():
        return _installed(program)
    try:
        subprocess.run(
            ["cargo", "build", "--release", "--locked", "--quiet", "--package", package],
            cwd=ROOT,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise TidegateError(
            f"{program} cannot be built ({error})",
            remedy="install a Rust toolchain",
            code="programs",
        ) from error
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return ROOT / target / "release"


def _installed(program: str) -> Path:
    beside = Path(sys.executable).parent
    if not (beside / program).exists():
        raise TidegateError(
            f"{program} is not in {beside}",
            remedy="install Tidegate again, or run this in a checkout of it, with a Rust toolchain",
            code="programs",
        )
    return beside
