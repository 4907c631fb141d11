"""Makes the virtual environments that `requirements/` describes. Standard library only.

    python -m harness.environments [NAME…]      (all of them without a name)

makes `.venv/NAME` for each `requirements/NAME.txt` unless it is there and up to date, and prints
the path of its Python. Each has the package `celeriac` as it stands in `python/`; how it is built
and installed is tested by `test_wheel.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

from harness.processes import Failure
from harness.services import install, say

INTEGRATION = Path(__file__).resolve().parent.parent
REQUIREMENTS = INTEGRATION / "requirements"
ENVIRONMENTS = INTEGRATION / ".venv"
PACKAGE = INTEGRATION.parent / "python"

#: What an installer would write for the package; see `pyproject.toml`.
METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: celeriac\nVersion: 0\n",
    "entry_points.txt": "[celery.result_backends]\nceleriac = celeriac.backend:CeleriacBackend\n",
}


def names() -> list[str]:
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def python(name: str, made_by: Path = Path(sys.executable)) -> Path:
    """The Python of an environment that has exactly what its requirements file says."""
    requirements = REQUIREMENTS / f"{name}.txt"
    if not requirements.exists():
        raise Failure(f"there is no environment `{name}`: choose from {', '.join(names())}")
    folder = ENVIRONMENTS / name
    interpreter = folder / "bin" / "python"
    parts = requirements.read_bytes(), version(made_by), Path(__file__).read_bytes()
    wanted = hashlib.sha256(b"".join(parts)).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Make may ask for the same environment twice at once.
    with (ENVIRONMENTS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "stamp"
        if not stamp.exists() or stamp.read_text() != wanted:
            say(f"making the virtual environment {name}")
            make(folder, requirements, made_by)
            stamp.write_text(wanted)
    return interpreter


def version(interpreter: Path) -> bytes:
    command = [interpreter, "-c", "import sys; print(sys.version)"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def make(folder: Path, requirements: Path, made_by: Path) -> None:
    # Debian and Ubuntu keep ensurepip in a package of its own.
    if importlib.util.find_spec("ensurepip") is None:
        install("python3-venv")
    for command in (
        [made_by, "-m", "venv", "--clear", folder],
        [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", requirements],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"could not make {folder}:\n{done.stdout}{done.stderr}")
    link_package(folder)


def link_package(folder: Path) -> None:
    """Puts the package of this repository on the path, as an editable installation would."""
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "celeriac.pth").write_text(f"{PACKAGE}\n")
    information = packages / "celeriac-0.dist-info"
    information.mkdir(exist_ok=True)
    for name, text in METADATA.items():
        (information / name).write_text(text)


def main() -> int:
    try:
        for name in sys.argv[1:] or names():
            print(python(name))
    except Failure as failure:
        say(f"environments.py: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
