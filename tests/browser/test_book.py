"""The book: every link leads somewhere, every picture and formula is drawn, wide and narrow."""

from __future__ import annotations

import html.parser
import importlib.util
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from alpaca_lib.course import book

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MOST_BYTES = 30e6
WIDTHS = {"wide": 1280, "narrow": 390}
# What is wrong on a drawn page: pictures without content, formulas with an error or left as TeX,
# a page that is wider than its window.
FAULTS = """() => {
  const found = [];
  for (const image of document.images)
    if (image.complete && image.naturalWidth === 0) found.push(`no picture: ${image.src}`);
  for (const one of document.querySelectorAll('mjx-merror, merror'))
    found.push(`formula: ${one.textContent}`);
  for (const one of document.querySelectorAll('.math'))
    if (!one.querySelector('mjx-container')) found.push(`not set: ${one.textContent.slice(0, 80)}`);
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  if (wide > 1) found.push(`${wide} px wider than the window`);
  return found;
}"""


class Links(html.parser.HTMLParser):
    """The links of a page and the names that links can lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps what one tag links to or is called."""
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.links.append(value)
            elif key in ("id", "name") and value:
                self.names.add(value)


def pages_of(site: Path) -> list[Path]:
    """Returns the book's own pages; the theme's templates are no pages."""
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


@pytest.fixture(scope="module")
def site(tmp_path_factory, say):
    """The folder of the built book."""
    missing = [name for name in book.NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip("pip install -r requirements-book.txt first")
    first = book.build(tmp_path_factory.mktemp("book"))
    size = sum(file.stat().st_size for file in first.parent.rglob("*") if file.is_file())
    say(f"{len(pages_of(first.parent))} pages, {size / 1e6:.1f} MB")
    assert size < MOST_BYTES
    return first.parent


def test_every_link_inside_the_book_leads_to_a_page_and_a_place(site):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in pages_of(site)}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(target)
            if not target.exists():
                broken.append(f"{path.relative_to(site)}: {link}")
            elif parts.fragment and known and unquote(parts.fragment) not in known.names:
                broken.append(f"{path.relative_to(site)}: {link} (no such place)")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_drawn_without_a_network(site, chromium, pictures, width):
    page = chromium.new_page(viewport={"width": WIDTHS[width], "height": 900})
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    faults = []
    for path in pages_of(site):
        name = path.relative_to(site).as_posix()
        if name == "index.html":  # leads on to docs/index.html
            continue
        page.goto(path.as_uri())
        page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
        for image in page.query_selector_all("img"):  # those below are loaded when they are seen
            image.scroll_into_view_if_needed()
        faults += [f"{name}: {fault}" for fault in page.evaluate(FAULTS)]
        if name.startswith(("docs/", "notebooks/0", "notebooks/zh/0")):
            file = f"book-{width}-{name.replace('/', '-').removesuffix('.html')}.png"
            page.evaluate("() => window.scrollTo(0, 0)")
            page.screenshot(path=pictures / file)
    page.close()
    away = sorted({url for url in asked if not url.startswith(("file:", "data:", "blob:"))})
    assert not away and not errors, (away, errors)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("query", "page_found"),
    [
        ("adapter", "notebooks/04_lora_finetune"),
        ("adapters", "notebooks/04_lora_finetune"),  # by its stem
        ("微调", "notebooks/zh/04_lora_finetune"),
        ("激活重算", "notebooks/zh/03_full_finetune_fsdp"),
        ("优化器", "notebooks/zh/03_full_finetune_fsdp"),
        ("低秩适配", "docs/glossary"),
    ],
)
def test_the_search_works_without_a_server(site, chromium, query, page_found):
    page = chromium.new_page()
    page.goto(f"{(site / 'search.html').as_uri()}?q={query}")
    page.wait_for_selector("#search-results li a", timeout=60_000)
    found = [a.get_attribute("href") for a in page.query_selector_all("#search-results li a")]
    page.close()
    assert any(page_found in link for link in found), found[:20]


def test_a_term_leads_to_the_glossary_where_a_lesson_uses_it_first(site):
    for lesson, word in (("04_lora_finetune", "adapter"), ("zh/04_lora_finetune", "适配器")):
        page = (site / f"notebooks/{lesson}.html").read_text(encoding="utf-8")
        links = re.findall(r'href="[./]*docs/glossary.html#adapter"[^>]*>([^<]*)<', page)
        assert len(links) == 1 and links[0].lower().startswith(word), links
