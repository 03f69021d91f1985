import skaocls

project = "skaocls"
author = "skaocls developers"
copyright = "2026, the skaocls developers"
release = skaocls.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_parser"]
autosummary_generate = True
numpydoc_show_class_members = False
myst_heading_anchors = 2
# scikit-learn's docstrings refer to labels of its own pages
suppress_warnings = ["ref.ref"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
