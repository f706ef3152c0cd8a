"""Editions of notebooks and pages: what is made from which file, links, and what is missing."""

from __future__ import annotations

import pytest

from alpaca_lib.course import editions
from alpaca_lib.course.editions import Edition, list_editions
from alpaca_lib.course.exercises import read_notebook
from alpaca_lib.course.notebooks import REPO
from alpaca_lib.course.translation import hash_of
from alpaca_lib.errors import RunError

PAGE = """# Guide

One paragraph with [a page](other.md), [data](../data/README.md#sets) and [more](#steps).

## Steps

```bash
# not a heading
run
```

## Steps

Again, see https://example.org.
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of two pages, one of them translated."""
    monkeypatch.setattr(editions, "REPO", tmp_path)
    for name in ("NOTEBOOKS", "SOLUTIONS", "EXERCISES"):
        relative = getattr(editions, name).relative_to(REPO)
        monkeypatch.setattr(editions, name, tmp_path / relative)
    monkeypatch.setattr(editions, "LESSONS", ())
    monkeypatch.setattr(editions, "PAGES", ("guide", "other"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "guide.md").write_text(PAGE, encoding="utf-8")
    (tmp_path / "docs" / "other.md").write_text("# Other\n", encoding="utf-8")
    return tmp_path


def translated(edition: Edition) -> str:
    cells = editions.read_source(edition.source).cells
    return "\n\n".join(f"%% {cell.id} {hash_of(cell.source)}\n{cell.source}" for cell in cells)


def test_a_page_is_cut_at_its_headings_and_put_together_again(project):
    path = project / "docs" / "guide.md"
    book = editions.read_source(path)
    assert [cell.id for cell in book.cells] == ["guide", "steps", "steps-2"]
    editions.write_source(book, project / "copy.md")
    assert (project / "copy.md").read_text(encoding="utf-8") == PAGE


def test_links_lead_to_the_same_language_where_there_is_one(project):
    guide, other, _ = list_editions("zh")
    for edition in (guide, other):
        edition.translations.parent.mkdir(parents=True, exist_ok=True)
        edition.translations.write_text(translated(edition), encoding="utf-8")
    assert editions.write_edition(guide, "zh") == [project / "docs" / "zh" / "guide.md"]
    text = guide.target.read_text(encoding="utf-8")
    assert text.startswith("# Guide\n\n[English](../guide.md) · 中文\n")
    for link in ("](other.md)", "](../../data/README.md#sets)", "](#steps)"):
        assert link in text, link
    other.translations.unlink()
    editions.write_edition(guide, "zh")
    assert "](../other.md)" in guide.target.read_text(encoding="utf-8")


def test_lists_of_pages_are_relinked_too(project):
    text = "```{toctree}\n:caption: x\n\nother\nName <../notebooks/a>\n```\n\nother"
    moved = {"docs/other.md": "docs/zh/other.md", "notebooks/a.ipynb": "notebooks/zh/a.ipynb"}
    found = editions.relink(text, project / "docs/guide.md", project / "docs/zh/guide.md", moved)
    assert found == text.replace("../notebooks/a", "../../notebooks/zh/a")


def test_what_is_missing_is_named_and_a_stub_adds_it(project):
    guide = list_editions("zh")[0]
    with pytest.raises(RunError, match=r"zh/docs/guide\.md: there are no translations"):
        editions.write_edition(guide, "zh")
    editions.write_stub(guide)
    assert list(editions.find_problems(guide)) == []
    guide.source.write_text(PAGE.replace("Again", "Once more"), encoding="utf-8")
    with pytest.raises(RunError, match=r"guide.md: cell steps-2 \(line \d+\): the English text"):
        editions.write_edition(guide, "zh")


@pytest.mark.parametrize("edition", list_editions("zh"), ids=lambda one: one.translations.name)
def test_the_course_s_translations_are_complete_and_not_stale(edition):
    """`python course.py translate zh` says the same, and writes the edition when it is mended."""
    if not edition.translations.exists():
        pytest.skip("not translated yet")
    assert not list(editions.find_problems(edition))


@pytest.mark.parametrize("edition", list_editions("zh"), ids=lambda one: one.translations.name)
def test_each_page_leads_to_the_other_language(edition):
    if not edition.translations.exists():
        pytest.skip("not translated yet")
    pairs = [(edition.source, edition.target)]
    if edition.exercise:
        pairs.append((editions.EXERCISES / edition.source.name, edition.exercise))
    for source, target in pairs:
        for path, other in ((source, target), (target, source)):
            is_page = path.suffix == ".md"
            top = (
                path.read_text(encoding="utf-8") if is_page else read_notebook(path).cells[0].source
            )
            links = editions.LINK.findall(top)
            assert (path.parent / links[0][1]).resolve() == other, path
