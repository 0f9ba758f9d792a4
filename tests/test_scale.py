"""Past one machine: a search on dask, and the recipes of docs/scale.md, run as they are printed."""

import re
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV

from sklvebm import LVEBMEstimator

PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()


def recipe(heading: str) -> str:
    """The Python below a heading of the page."""
    section = re.search(rf"(?ms)^### {heading}\n(.*?)(?=^##+ |\Z)", PAGE)[1]
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```$", section)
    return code


def run(code: str, folder: Path, *start: str) -> str:
    """What ``code`` prints, run in ``folder`` by a fresh interpreter, which ``start`` leads."""
    (folder / "fit.py").write_text(code)
    command = [sys.executable, "-W", "ignore", *start, "fit.py"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def score_in_a_worker(estimator, X, y=None):
    """The score, and an error where no dask worker is at work."""
    from dask.distributed import get_worker

    get_worker()
    return estimator.score(X)


def test_a_search_runs_on_dask():
    """Its fits run on dask's workers, and find what they find here."""
    distributed = pytest.importorskip("dask.distributed")
    X, grid = load_iris().data, {"n_components": [1, 2]}
    model = LVEBMEstimator(energy="linear", random_state=0)
    here = GridSearchCV(model, grid, cv=2).fit(X)
    there = GridSearchCV(
        model, grid, cv=2, scoring=score_in_a_worker, error_score="raise", refit=False
    )
    options = {"processes": False, "n_workers": 1, "dashboard_address": None}
    with pytest.raises(ValueError, match=r"[Ww]orker"):
        there.fit(X)
    with distributed.Client(**options), joblib.parallel_config(backend="dask"):
        there.fit(X)
    expected, found = (search.cv_results_["mean_test_score"] for search in (here, there))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_dask_recipe(tmp_path):
    pytest.importorskip("dask.distributed")
    code = recipe("A search on dask") + "print(sorted(search.best_params_))"
    assert run(code, tmp_path).strip() == "['n_components']"


def test_the_ray_recipe(tmp_path):
    code = recipe("A search on ray") + "print(sorted(search.best_params_))"
    compile(code, "scale.md", "exec")
    pytest.importorskip("ray")
    assert run(code, tmp_path).splitlines()[-1] == "['n_components']"


def test_the_checkpoint_recipe(tmp_path):
    code = recipe("Checkpoints") + "print(model.converged_, model.n_iter_)"
    assert run(code, tmp_path).split()[1].isdigit()
    assert [path.name for path in tmp_path.iterdir()] == ["fit.py"]


def test_the_torchrun_recipe(tmp_path):
    """The launcher that is named ``torchrun`` on the path, as a module."""
    pytest.importorskip("torch.distributed.run")
    code = recipe("One fit, several processes")
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (line,) = run(code, tmp_path, *start).splitlines()
    assert np.isfinite(float(line))
