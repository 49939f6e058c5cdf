"""Sphinx's settings: ``make docs`` builds the pages into ``build/docs``."""

import os
import re
import sys
from pathlib import Path

import django

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
# The docstrings of the reference are read from a site.
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.support.settings")
django.setup()

from channels_websocket_utils import __version__  # noqa: E402

project = "Channels WebSocket Utils"
author = "The channels_websocket_utils team"
copyright = author
version = release = __version__

extensions = ["sphinx.ext.autodoc"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
add_module_names = False
# What ``literals`` mean is said in the text, not looked up.
default_role = None
nitpicky = False

html_theme = "furo"
html_title = f"{project} {version}"
html_copy_source = False
html_show_sphinx = False


# README.rst and CHANGELOG.rst link to pages by their files, as a forge needs it.
FILE_LINK = re.compile(r"`([^`<]+)<(?:docs/)?([\w/]+)\.rst>`__")


def link_pages(app, relative_path, parent_docname, content):
    """Replace the links to files in an included text by links to the built pages."""
    content[0] = FILE_LINK.sub(
        lambda link: f":doc:`{link[1]}</{link[2].lower()}>`",
        content[0],
    )


def setup(app):
    app.connect("include-read", link_pages)
