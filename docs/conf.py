"""Sphinx: what builds the site. Nothing here, and nothing in the pages, needs a network."""

import re
import sys
from pathlib import Path

# The gallery looks up every name that its examples import, this experimental one too.
from sklearn.experimental import enable_halving_search_cv  # noqa: F401

import sklvebm

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "sklvebm"
author = "the sklvebm developers"
project_copyright = author
version = release = sklvebm.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "mathml",
]

exclude_patterns = ["_build", "gallery"]
templates_path = ["_templates"]
highlight_language = "none"
nitpicky = True
# Words of numpydoc's type descriptions and other projects' objects: no page here describes them.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!sklvebm).*"),
    (r"py:.*", r"sklvebm\..*\._.*"),
]

# -- prose -------------------------------------------------------------------------------------

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# -- the API reference -------------------------------------------------------------------------

autosummary_generate = True
toc_object_entries_show_parents = "hide"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# -- the gallery -------------------------------------------------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,  # its page asks a CDN for scripts
    "image_srcset": ["2x"],
    "abort_on_example_error": True,
    "plot_gallery": "True",
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

# -- HTML --------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = f"sklvebm {release}"
html_static_path = ["_static"]
html_css_files = ["sklvebm.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "logo": {"text": "sklvebm"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 6,
    "show_toc_level": 1,
    "pygments_dark_style": "github-dark",
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"index": [], "faq": [], "changelog": [], "features": [], "method": []}

# -- links -------------------------------------------------------------------------------------

# `make docs` looks at no network; nor does a check of links.
linkcheck_ignore = [r"https?://.*"]


def _drop_pictures_not_drawn_yet(app, docname, source):
    """A page of measurements names pictures that its script has still to draw: leave them out."""
    folder = (HERE / docname).parent

    def kept(match):
        return match[0] if (folder / match[1]).exists() else ""

    source[0] = re.sub(r"!\[[^\]]*\]\(([^):]+\.png)\)", kept, source[0])


def _quote_attributes_in_types(app, what, name, obj, options, lines):
    """`shape (n_features_in_,)`: a trailing underscore is a link in reStructuredText."""
    lines[:] = [re.sub(r"\((\w+_),\)", r"(``\1``,)", line) for line in lines]


def setup(app):
    app.connect("source-read", _drop_pictures_not_drawn_yet)
    app.connect("autodoc-process-docstring", _quote_attributes_in_types, priority=999)
