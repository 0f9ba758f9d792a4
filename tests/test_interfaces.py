"""What other libraries see: safe files, frames, the HTML of a notebook, the docstrings."""

import io
from email.message import Message

import numpy as np
import pytest
import sklearn
from sklearn.datasets import load_iris
from sklearn.utils import estimator_html_repr
from sklearn.utils.fixes import parse_version

from sklvebm import LVEBMEstimator, LVEBMOutlierDetector, TiltedEnergy
from sklvebm._links import documentation


@pytest.fixture(scope="module")
def X():
    return load_iris().data


@pytest.fixture(scope="module")
def model(X):
    quick = {"max_iter": 20, "pool_size": 128, "random_state": 0}
    return LVEBMEstimator(2, marginals="mixture", **quick).fit(X)


def test_skops_trusts_our_classes_alone(model, X):
    sio = pytest.importorskip("skops.io")
    blob = sio.dumps(model)
    foreign = sio.get_untrusted_types(data=blob)
    assert foreign
    assert all(name.startswith("sklvebm.") for name in foreign)
    loaded = sio.loads(blob, trusted=foreign)
    np.testing.assert_array_equal(loaded.score_samples(X[:9]), model.score_samples(X[:9]))
    np.testing.assert_array_equal(loaded.sample(3), sio.loads(blob, trusted=foreign).sample(3))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_out(model, X, library):
    frames = pytest.importorskip(library)
    again = LVEBMEstimator(2, energy="linear").fit(X).set_output(transform=library)
    Z = again.transform(X[:5])
    assert isinstance(Z, frames.DataFrame)
    assert (
        list(Z.columns)
        == list(again.get_feature_names_out())
        == [
            "lvebmestimator0",
            "lvebmestimator1",
        ]
    )


def test_html_shows_what_was_fitted(model):
    text = estimator_html_repr(model)
    assert "LVEBMEstimator" in text
    if parse_version(sklearn.__version__) < parse_version("1.9"):
        pytest.skip("scikit-learn before 1.9 shows no fitted attributes")
    assert "log_partition_" in text


@pytest.mark.parametrize(
    ("made", "page"),
    [
        (LVEBMEstimator, "sklvebm.LVEBMEstimator"),
        (LVEBMOutlierDetector, "sklvebm.LVEBMOutlierDetector"),
        (TiltedEnergy, "sklvebm.energies.TiltedEnergy"),
    ],
)
def test_html_links_to_the_reference(made, page, monkeypatch):
    """Where the metadata name its address; nowhere else, and never from a class of another's."""
    monkeypatch.setattr("sklvebm._links.documentation", lambda: "https://docs.example")
    link = f'href="https://docs.example/api/generated/{page}.html"'
    assert link in estimator_html_repr(made())
    theirs = type("Theirs", (made,), {"__module__": "theirs"})
    assert theirs()._get_doc_link() == ""
    monkeypatch.setattr("sklvebm._links.documentation", lambda: "")
    assert "href" not in estimator_html_repr(made())


@pytest.mark.parametrize(
    ("urls", "home"),
    [
        (["Source, https://a.example", "Documentation, https://b.example/"], "https://b.example"),
        (None, ""),
    ],
)
def test_the_references_address_is_the_metadatas(urls, home, monkeypatch):
    message = Message()
    for url in urls or ():
        message["Project-URL"] = url
    monkeypatch.setattr("importlib.metadata.metadata", lambda name: message)
    assert documentation.__wrapped__() == home


@pytest.mark.parametrize("cls", [LVEBMEstimator, LVEBMOutlierDetector])
def test_docstrings_describe_every_parameter(cls):
    validate = pytest.importorskip("numpydoc.validate")
    names = [cls.__name__] + [
        f"{cls.__name__}.{name}"
        for name, value in vars(cls).items()
        if callable(value) and not name.startswith("_")
    ]
    # Parameters missing, unknown, in another order, or without a type; a section without a body.
    for name in names:
        errors = validate.validate(f"{cls.__module__}.{name}")["errors"]
        wrong = [e for e in errors if e[0] in {"PR01", "PR02", "PR03", "RT01", "GL08", "SS01"}]
        assert not wrong, (name, wrong)


def test_pickles_fit_in_memory(model):
    joblib = pytest.importorskip("joblib")
    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    buffer.seek(0)
    assert joblib.load(buffer).log_partition_ == model.log_partition_
