"""The claims of the paper, each measured by a module of its own; ``__main__.py`` runs them."""
