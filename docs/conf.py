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
autodoc_typehints = "none"  # docstrings contain the types
toc_object_entries_show_parents = "hide"  # the contents of a class page show `fit()`
numpydoc_show_class_members = False  # the class template lists them
numpydoc_validation_checks = {
    "all",
    "ES01",  # a summary is often enough
    "EX01",  # not every method needs an example
    "SA01",  # the text contains the links
    "GL01",  # the summary starts on the line of the quotes
    "RT02",  # return values have names
    "RT04",  # descriptions may start with a formula
    "PR08",
    "SS05",  # mistakes nouns such as `Images` for verbs
}
numpydoc_validation_exclude = {
    r"\.(fit_transform|get_params|score|set_params)$",  # inherited from scikit-learn
    r"\.SharedTrunkPrior\.log_prob$",  # inherited from AnyOrderPrior
    r"^skaocls\.scoring\.evidence\.Evidence$",  # the fields of a named tuple are attributes
    # modules on the page for contributors
    r"^skaocls\.(files|fitted|images|priors|training)\.",
    r"^skaocls\.scoring\.(?!evidence\.Evidence)",
}
# Inherited docstrings refer to labels on scikit-learn's pages. Spaces in the path of the repository
# do not break links within the site.
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

# Examples run during the build; `sphinx-build -D plot_gallery=0` skips running them
plot_gallery = "True"
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "ignore_pattern": r"__init__\.py|examples/scale/",  # scripts for clusters
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "skaocls"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
# pages without subpages need no section navigation
html_sidebars = {
    page: []
    for page in ("get_started", "user_guide", "faq", "trust", "changelog")
    + ("scale", "scale_scoring", "scale_data", "scale_plan")
}
html_theme_options = {
    "header_links_before_dropdown": 6,  # fits into one line of a window 1280 pixels wide
    "navigation_with_keys": False,
    "show_toc_level": 2,
}
copybutton_exclude = ".linenos, .gp, .go"


def setup(app):
    # Without a network, links to other projects are missing, which is not an error
    log = logging.getLogger("sphinx.sphinx.ext.intersphinx")
    log.addFilter(lambda record: "any of the inventories" not in str(record.msg))
