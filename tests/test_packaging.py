"""The package that is tested is whole, and what it declares is what was run."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import sklvebm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD_TOOLS = {"ruff", "mypy"}  # their age says nothing of what a user runs


def pins(path: str) -> dict[str, str]:
    """The versions that a file of constraints pins."""
    return dict(re.findall(r"(?m)^([\w-]+)==(\S+)$", (ROOT / path).read_text()))


def bounds(*extras: str) -> dict[str, str]:
    """The lower bounds of the dependencies and of some extras."""
    lines = PROJECT["dependencies"] + [
        line for extra in extras for line in PROJECT["optional-dependencies"][extra]
    ]
    parts = (line.split(">=") for line in lines)
    return {name.split("[")[0]: bound for name, bound in parts}


def padded(number: str) -> list[int]:
    """``"1.6"`` and ``"1.6.0"`` are one version."""
    return ([int(part) for part in number.split(".")] + [0, 0])[:3]


def files(folder: Path) -> set[str]:
    """Python files and the type marker below a folder."""
    found = [*folder.rglob("*.py"), *folder.rglob("py.typed")]
    return {str(path.relative_to(folder)) for path in found}


def test_every_file_of_the_package_is_there():
    """Trivial in a checkout; from a wheel, what the build left out shows."""
    imported = files(Path(sklvebm.__file__).parent)
    assert imported == files(ROOT / "sklvebm")
    assert {"py.typed", "energies/__init__.py", "displays/__init__.py"} <= imported


def test_public_names_are_found_when_first_asked_for():
    code = (
        "import sklvebm, sys\n"
        "assert 'torch' not in sys.modules\n"
        "for name in dir(sklvebm): getattr(sklvebm, name)\n"
        "assert sklvebm.datasets.Moons and sklvebm.DivergenceError and sklvebm.displays.__all__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sklvebm.nothing  # noqa: B018


def test_the_version_is_one():
    assert version("sklvebm") == sklvebm.__version__


def test_the_documented_extras_exist():
    wanted = {"plot", "progress", "diagnostics", "persist", "parallel", "docs", "test", "bench"}
    assert wanted == set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"]))
def test_what_is_installed_by_hand_is_pinned(extra):
    assert set(bounds(extra)) <= set(pins("constraints.txt"))


def test_the_lower_bounds_are_those_that_are_run():
    oldest = pins("constraints-min.txt")
    declared = bounds("plot", "progress", "diagnostics", "persist", "test")
    declared = {name: bound for name, bound in declared.items() if name not in BUILD_TOOLS}
    assert set(declared) == set(oldest)
    for name, bound in declared.items():
        assert padded(bound) == padded(oldest[name]), name
