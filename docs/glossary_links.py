"""Links each glossary term, where a lesson uses it first, to its place in the glossary.

An extension of Sphinx: conf.py loads it. The notebooks themselves stay as they are.
"""

from docutils import nodes
from sphinx.application import Sphinx

from alpaca_lib.course.glossary import find_terms, load_terms

GLOSSARY = "docs/glossary"
# Where a word is no prose: names in code, other links, headings, formulas, what a cell printed.
NO_PROSE = (
    nodes.literal, nodes.literal_block, nodes.reference, nodes.title, nodes.math,
    nodes.math_block, nodes.raw,
)  # fmt: skip


def is_prose(text: nodes.Text) -> bool:
    """Tells whether a piece of text is the author's own sentence."""
    parent = text.parent
    while parent is not None:
        if isinstance(parent, NO_PROSE) or "cell_output" in parent.get("classes", ()):
            return False
        parent = parent.parent
    return True


def places(app: Sphinx) -> dict[str, str]:
    """Returns {term: the name of its place in the glossary's page}."""
    sections = app.env.get_doctree(GLOSSARY).findall(nodes.section)
    return {section.next_node(nodes.title).astext(): section["ids"][0] for section in sections}


def link_first_uses(app: Sphinx, page: nodes.document, name: str) -> None:
    """Replaces each term's first use in a lesson by a link that shows its sentence."""
    folder = name.rpartition("/")[0]
    if folder not in ("notebooks", "notebooks/zh"):
        return
    language = "zh" if folder.endswith("zh") else "en"
    terms, place, linked = load_terms(), places(app), set()
    address = app.builder.get_relative_uri(name, GLOSSARY)
    for text in list(page.findall(nodes.Text)):
        if not is_prose(text):
            continue
        parts = []
        for words, term in find_terms(text.astext(), terms, language):
            if term is None or term in linked:
                parts.append(nodes.Text(words))
                continue
            linked.add(term)
            about = term.chinese_sentence if language == "zh" else term.sentence
            target = f"{address}#{place[term.term]}"
            parts.append(nodes.reference("", words, refuri=target, reftitle=about, internal=True))
        if any(isinstance(part, nodes.reference) for part in parts):
            text.parent.replace(text, parts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Is called by Sphinx when it loads the extension."""
    app.connect("doctree-resolved", link_first_uses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
