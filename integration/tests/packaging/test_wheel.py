"""The wheel in an empty environment: the command, the backend and the Django app."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from harness import environments
from harness.daemon import REPOSITORY
from harness.project import clean_environment

#: Needs a build and a package index.
pytestmark = [pytest.mark.full, pytest.mark.xdist_group("wheel")]


def run(*command: str | Path) -> str:
    env = clean_environment()
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=env, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as by `make wheel`, but without optimisation, which takes minutes."""
    folder = tmp_path_factory.mktemp("wheel")
    maturin = environments.python("wheel").with_name("maturin")
    manifest = REPOSITORY / "Cargo.toml"
    options = ["--profile", "dev", "--locked", "--manifest-path", manifest, "--out", folder]
    run(maturin, "build", *options)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with only the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", wheel)
    return folder / "bin"


def test_the_wheel_holds_what_is_needed_and_no_more(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    version = wheel.name.split("-")[1]
    assert folders == {"celeriac", f"celeriac-{version}.data", f"celeriac-{version}.dist-info"}
    assert f"celeriac-{version}.data/scripts/celeriac" in names
    assert "celeriac/py.typed" in names
    assert "celeriac/migrations/0001_initial.py" in names
    assert any(name.endswith("LICENSE-MIT") for name in names)


def test_the_program(environment: Path) -> None:
    # THEN the program is in the PATH of the environment, and Python finds it too
    version = run(environment / "celeriac", "--version")
    assert version.startswith("celeriac ")
    assert run(environment / "python", "-m", "celeriac", "--version") == version


def test_the_backend(environment: Path) -> None:
    # THEN Celery finds the backend by its URL, without Django
    code = (
        "from celery import Celery; app = Celery(backend='celeriac://?queue=shop.results'); "
        "print(type(app.backend).__module__, app.backend.as_uri())"
    )
    found = run(environment / "python", "-c", code)
    assert found == "celeriac.backend celeriac://?queue=shop.results\n"
    packages = run(environment / "python", "-m", "pip", "freeze").lower()
    assert "celery==" in packages
    assert "django" not in packages
