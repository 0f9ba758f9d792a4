"""The site: links lead somewhere, the reference is whole, every "yes" is shown by a test."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest
from sklearn.datasets import load_wine

import sklvebm
import sklvebm.datasets
import sklvebm.energies

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]
    if not {"_build", "auto_gallery", "generated"} & set(page.parts)
)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"(?ms)^(```+|~~~+).*?^\1$", "", page.read_text())


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked by."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(page))
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


def source_of(target: Path) -> Path:
    """The file that the site makes ``target`` from."""
    example = re.fullmatch(r"(plot_\w+)\.rst", target.name)
    return DOCS / "gallery" / f"{example[1]}.py" if example else target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages(page):
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = source_of((page.parent / path).resolve()) if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}"


def modules():
    """Public modules; a checkout may lack the optional ones."""
    names = ["", ".energies", ".datasets", ".displays"]
    return [n for n in (f"sklvebm{name}" for name in names) if importlib.util.find_spec(n)]


@pytest.mark.parametrize("module", modules())
def test_every_public_name_is_in_the_reference(module):
    listed = set()
    for page in (DOCS / "api").glob("*.rst"):
        listed |= set(re.findall(r"(?m)^   ([\w.]+)$", page.read_text()))
    names = {name.rpartition(".")[2] for name in listed}
    public = set(importlib.import_module(module).__all__) - {"__version__"}
    assert public <= names, sorted(public - names)


def defined(path: Path) -> set[str]:
    """Functions, classes and methods of a file, as ``Class.method``."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


def test_every_yes_is_shown():
    """Our column of the features: a "yes" is a link to a test that exists."""
    text = (DOCS / "features.md").read_text()
    rows = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| ")]
    cells = [cell for cell in rows if cell.startswith(("yes", "[yes]"))]
    assert cells, "no features"
    sections = {
        title.lower().replace(" ", "-"): body
        for title, body in re.findall(r"(?ms)^### (.+?)\n(.*?)(?=^### |\Z)", text)
    }
    shown = r"\{literalinclude\} (\S+)\n:pyobject: (\S+)"
    for cell in cells:
        link = re.fullmatch(r"\[yes\]\(#([\w-]+)\)", cell)
        assert link, f"{cell!r} links to nothing"
        tests = re.findall(shown, sections[link[1]])
        assert tests, f"{link[1]} shows no test"
        for path, name in tests:
            assert name in defined(DOCS / path), f"{link[1]}: {name} is not in {path}"


def test_the_changelog_has_this_version():
    assert f"## {sklvebm.__version__}" in (DOCS / "changelog.md").read_text()


@pytest.mark.parametrize("example", sorted((DOCS / "gallery").glob("*.py")), ids=lambda p: p.stem)
def test_examples_are_whole(example):
    """A title with its line, and Python that parses."""
    lines = ast.get_docstring(ast.parse(example.read_text())).splitlines()
    assert len(lines) > 2
    assert lines[1] == "=" * len(lines[0])


@pytest.mark.parametrize("page", ["docs/quickstart.md", "README.md"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_blocks_run_in_order(page, tmp_path, monkeypatch):
    """With shorter fits than a reader's; what the blocks make is there in the end."""
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    load_wine(as_frame=True).frame.to_csv("my_table.csv", index=False)
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```", (ROOT / page).read_text())
    source = "\n".join(blocks).replace("n_jobs=2", "n_jobs=1")
    short = "max_iter=5, marginals='gaussian', smoothing=0, refit=False, "
    source = source.replace("LVEBMOutlierDetector(", "LVEBMOutlierDetector(LVEBMEstimator(), ")
    source = source.replace("LVEBMEstimator(", f"LVEBMEstimator({short}")
    exec(compile(source, page, "exec"), names := {})
    assert isinstance(names["search"].best_score_, float)
    assert names["pipe"].score(names["X_test"], names["y_test"]) > 0.5
    if page == "docs/quickstart.md":
        assert names["filled"].notna().all(axis=None)
        assert names["draws"].shape == (200, 1, 13)
        assert set(names["labels"]) <= {-1, 1}


def test_the_optuna_example_runs():
    """On fewer and shorter fits than the site's; some are pruned there."""
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("sklearn.callback")
    pytest.importorskip("matplotlib").use("Agg")
    source = (DOCS / "gallery" / "plot_11_optuna.py").read_text()
    for long, short in (("n_trials=10", "n_trials=2"), ("max_iter=400", "max_iter=20")):
        assert source.count(long) == 1
        source = source.replace(long, short)
    exec(compile(source, "plot_11_optuna.py", "exec"), names := {})
    trials = names["study"].trials
    assert [trial.state for trial in trials] == [optuna.trial.TrialState.COMPLETE] * 2
    assert all(len(trial.intermediate_values) > 1 for trial in trials)

    class Hopeless:
        report = staticmethod(lambda value, step: None)
        should_prune = staticmethod(lambda: True)

    model = names["LVEBMEstimator"](2, max_iter=20).set_callbacks(names["Report"](Hopeless))
    with pytest.raises(optuna.TrialPruned):
        model.fit(names["X_train"])
