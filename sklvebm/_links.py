"""Links from a notebook to the API reference, once the package says where that is."""

from __future__ import annotations

from functools import cache


@cache
def documentation() -> str:
    """The ``Documentation`` address of the installed package's metadata, or nothing."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata("sklvebm").get_all("Project-URL") or []
    except PackageNotFoundError:  # a checkout that is only on the path
        return ""
    named = (url.partition(",") for url in urls)
    return next((url.strip().rstrip("/") for name, _, url in named if name == "Documentation"), "")


class DocumentedMixin:
    """What ``_repr_html_`` asks an estimator of scikit-learn's: the page that describes it."""

    def _get_doc_link(self) -> str:
        home, cls = documentation(), type(self)
        package = cls.__module__.rpartition(".")[0]  # where a module's names are public
        ours = package.partition(".")[0] == "sklvebm"
        return f"{home}/api/generated/{package}.{cls.__name__}.html" if home and ours else ""
