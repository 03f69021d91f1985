import logging

import skaocls

project = "skaocls"
author = "skaocls developers"
copyright = "2026, the skaocls developers"
release = skaocls.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]

default_role = "literal"
autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say it
toc_object_entries_show_parents = "hide"  # beside the page of a class, `fit()`
numpydoc_show_class_members = False  # the template of classes shows methods in full
numpydoc_validation_checks = {
    "all",
    "ES01",  # a summary often says all
    "EX01",  # not every method needs an example
    "SA01",  # links stand in the text
    "GL01",  # the summary begins beside the quotes
    "RT02",  # results are named
    "RT04",  # descriptions may begin with a formula
    "PR08",
    "SS05",  # `Images`, `Tokens` are no verbs
}
numpydoc_validation_exclude = {
    r"\.(fit_transform|get_params|score)$",  # scikit-learn's own
    r"^skaocls\.scoring\.evidence\.Evidence$",  # a named tuple, whose fields are attributes
    # the page for contributors
    r"^skaocls\.(files|images|learned|priors|training)\.",
    r"^skaocls\.scoring\.(?!evidence\.Evidence)",
}
# scikit-learn's docstrings refer to labels of its own pages
# a folder with a space above the repository breaks no link within the site
suppress_warnings = ["ref.ref", "sphinx_gallery.space_in_filename"]

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "sklearn": ("https://scikit-learn.org/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}
intersphinx_timeout = 5

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# the examples run while the pages are built; `sphinx-build -D plot_gallery=0` only shows them
plot_gallery = "True"
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "ignore_pattern": r"__init__\.py|examples/scale/",  # scripts for clusters, shown elsewhere
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "skaocls"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
# pages without pages below them have no section to navigate
html_sidebars = {
    page: []
    for page in ("get_started", "user_guide", "faq", "trust", "changelog")
    + ("scale", "scale_scoring", "scale_data", "scale_plan")
}
html_theme_options = {
    "header_links_before_dropdown": 6,  # in one line of a window 1280 wide
    "navigation_with_keys": False,
    "show_toc_level": 2,
}
copybutton_exclude = ".linenos, .gp, .go"


def setup(app):
    # without a network there are no links to other projects, and the pages are whole
    log = logging.getLogger("sphinx.sphinx.ext.intersphinx")
    log.addFilter(lambda record: "any of the inventories" not in str(record.msg))
