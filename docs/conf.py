"""Sphinx's configuration of the book; alpaca_lib/course/book.py copies the sources and builds."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the two extensions of this folder

project = "The Alpaca recipe, as a course"
author = "the authors of the course"
root_doc = "docs/index"
extensions = ["myst_nb", "sphinx_copybutton", "sphinx-mathjax-offline"]
extensions += ["glossary_links", "bilingual_search"]
exclude_patterns = ["docs/extra", "data/domains", "**.ipynb_checkpoints"]

nb_execution_mode = "off"  # the committed outputs are shown
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables that a cell shows
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type"]  # widgets have a static twin

repository = os.environ.get("ALPACA_REPOSITORY", "")  # OWNER/NAME of a fork
html_theme = "sphinx_book_theme"
html_title = project
html_show_copyright = False
html_extra_path = ["extra"]
html_static_path, html_css_files = ["static"], ["book.css"]
html_search_language = "en+zh"
html_search_options = {"dict": str(Path(__file__).parent / "words.txt")}  # by book.py
html_theme_options = {"show_toc_level": 2, "use_fullscreen_button": False}
if repository:
    html_theme_options |= {
        "repository_url": f"https://github.com/{repository}",
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
        "icon_links": [
            {
                "name": "Open in Codespaces",
                "url": f"https://codespaces.new/{repository}",
                "icon": "fa-solid fa-laptop-code",
            }
        ],
    }
