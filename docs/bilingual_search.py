"""A search in English and Chinese: Chinese is cut into words, English words are stemmed.

An extension of Sphinx: conf.py loads it. A query is not cut: two Chinese words need a space
between them.
"""

from sphinx.application import Sphinx
from sphinx.search.zh import SearchChinese


class BilingualSearch(SearchChinese):
    """Sphinx's Chinese search, whose English stemmer the browser finds.

    Sphinx 9.0 calls the stemmer in the page by the language's name: ChineseStemmer, which does
    not exist. The stemmer that it loads there is the English one.
    """

    lang = "en+zh"
    language_name = "English"


def setup(app: Sphinx) -> dict[str, bool]:
    """Is called by Sphinx when it loads the extension."""
    app.add_search_language(BilingualSearch)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
