"""Formulas as MathML, which browsers draw by themselves: no script, no font, no network."""

import re

from docutils import nodes
from latex2mathml.converter import convert


def _mathml(formula, **options):
    """The formula's MathML, with the space between log and what it is of."""
    named = r"(<mi>(?:log|exp|det|max|min)</mi>)(?=<m(?:i|sub|sup|over|row))"
    return re.sub(named, r'\1<mspace width="0.17em"/>', convert(formula, **options))


def _inline(self, node):
    self.body.append(_mathml(node.astext()))
    raise nodes.SkipNode


def _display(self, node):
    formula = _mathml(node.astext(), display="block")
    self.body.append(self.starttag(node, "div", CLASS="math") + formula + "</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
