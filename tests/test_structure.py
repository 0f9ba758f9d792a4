"""The house: imports point downwards, and the core knows nothing of the facade."""

import ast
from pathlib import Path

import pytest

import sklvebm

ROOT = Path(sklvebm.__file__).parent
# Each module may import from the layers above its own line, which stand lower in the house.
LAYERS = [
    {"state", "_threads", "_products"},
    {
        "_arrays",
        "optimizer",
        "networks",
        "langevin",
        "tails",
        "_parameters",
        "_callbacks",
        "_format",
        "_links",
        "_warnings",
        "diagnostics",
        "report",
        "datasets",
        "rows",
        "reconstruction",
        "ppca",
        "marginals",
    },
    {"shears"},
    {"residuals"},
    {
        "reference",
        "annealing",
        "proposals",
        "completion",
        "mixtures",
        "distributed",
        "quasirandom",
        "units",
        "recording",
    },
    {"energies", "laplace", "checkpoint", "smoothing"},
    {"particles", "stage", "axes"},
    {"evidence", "saddle"},
    {"partition", "decoding"},
    {"model", "heldout"},
    {"finishing"},
    {"training"},
    {"pilot"},
    {"fitting"},
    {"estimator"},
    {"outliers", "displays"},
]
FLOOR = {name: floor for floor, names in enumerate(LAYERS) for name in names}


def imports(path):
    """Modules of the package that ``path`` imports, by their first name."""
    own = path.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            depth = node.level - (len(own) - 1)
            if depth == 1 and node.module:
                yield node.module.split(".")[0]


MODULES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py" or p.parent != ROOT)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in FLOOR, f"{own} has no floor: say in LAYERS where it lives"
    for name in imports(path):
        assert name == own or FLOOR[name] < FLOOR[own], f"{own} imports {name}"


def test_the_walk_sees_the_imports():
    assert {"reference", "langevin"} <= set(imports(ROOT / "energies" / "_joint.py"))
    assert {"fitting", "model"} <= set(imports(ROOT / "estimator.py"))


def test_the_global_generators_are_not_named():
    """Nothing below the facade draws from a global generator or sets a global.

    ``_threads.py`` lends threads to a part of the work and restores their number: test_threads.py.
    """
    forbidden = ("torch.manual_seed", "np.random.seed", "set_num_threads", "set_default_dtype")
    for path in ROOT.rglob("*.py"):
        if path.name not in ("custom.py", "_threads.py"):
            assert not any(name in path.read_text() for name in forbidden), path
