"""How Sphinx builds the site: `make docs`."""

from hrvqvae import __version__

project = "hrvqvae"
author = copyright = "The hrvqvae authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"hrvqvae {release}"
exclude_patterns = ["_build", "data"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = False
