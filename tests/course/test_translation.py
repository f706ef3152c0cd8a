"""Editions in another language: the same code, and translations that are not out of date."""

from __future__ import annotations

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from alpaca_lib.course import translation
from alpaca_lib.course.translation import hash_of, parse, problems, translate
from alpaca_lib.errors import DataError

CODE = '''# Ask until enough are kept.
name = "kept"
course.say(f"{len(rows)} rows, {name}")
"""a text
of two lines"""
'''


def book():
    prose = new_markdown_cell("## The loop\n\nIt asks.", id="prose")
    return new_notebook(cells=[prose, new_code_cell(CODE, id="code", outputs=[])])


def entries(prose="## 循环\n\n它一直请求。", code='< "kept"\n> "保留"', prose_hash="", extra=""):
    heads = prose_hash or hash_of(book().cells[0].source), hash_of(CODE)
    text = f"%% prose {heads[0]}\n{prose}\n\n%% code {heads[1]}\n{code}\n{extra}"
    return parse(text, "zh/01.md")


def test_prose_comments_and_strings_are_replaced_and_nothing_else():
    code = (
        '< "kept"\n> "保留"\n< # Ask until enough are kept.\n> # 一直请求。\n'
        '< f"{len(rows)} rows, {name}"\n> f"{name}：{len(rows)} 行"\n'
        '< """a text\n< of two lines"""\n> """两行的\n> 文字"""'
    )
    prose, cell = translate(book(), entries(code=code)).cells
    assert prose.source == "## 循环\n\n它一直请求。"
    assert cell.source == (
        '# 一直请求。\nname = "保留"\ncourse.say(f"{name}：{len(rows)} 行")\n"""两行的\n文字"""\n'
    )
    assert book().cells[1].source == CODE


def test_strings_that_python_joins_are_replaced_together_or_one_by_one():
    code = 'course.say(\n    f"{loss:.2f} after "\n    "training", end="."\n)\n'
    together = translation.replace_texts(
        code, [('f"{loss:.2f} after "\n"training"', 'f"训练后"\nf"为 {loss:.2f}"')]
    )
    assert together == 'course.say(\n    f"训练后"\n    f"为 {loss:.2f}", end="."\n)\n'
    alone = translation.replace_texts(code, [('"training"', '"训练"'), ('"."', '"。"')])
    assert alone == 'course.say(\n    f"{loss:.2f} after "\n    "训练", end="。"\n)\n'


def test_an_f_string_with_a_string_inside_is_one_text():
    code = 'print(f"{rows["a"] if x else 0} rows")  # count\n'.replace('"a"', "'a'")
    found = [[span.text for span in run] for run in translation.find_texts(code)]
    assert found == [["f\"{rows['a'] if x else 0} rows\""], ["# count"]]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prose_hash": "00000000"}, "cell prose (line 1): the English text has changed"),
        ({"code": '< "lost"\n> "丢"'}, "no comment or string '\"lost\"' in the cell"),
        ({"code": '< "kept"\n> kept()'}, "the code differs in more than texts"),
        ({"code": '< f"{len(rows)} rows, {name}"\n> f"{name}"'}, "differs in more than texts"),
        ({"code": '< "kept"\n> "a" + '}, "cell code"),
        ({"extra": "%% other 00000000\nx"}, "the source has no such cell"),
        ({"prose": "用聊天模板。"}, "chat template is '对话模板' in this course, not '聊天模板'"),
    ],
)
def test_each_problem_names_its_cell(changed, says):
    found = list(problems(book(), entries(**changed)))
    assert len(found) == 1 and says in found[0], found
    with pytest.raises(DataError):
        translate(book(), entries(**changed))


def test_a_missing_cell_is_a_problem_and_a_stub_adds_it():
    assert list(problems(book(), {})) == ["cell prose: is not translated; --stub adds its text"]
    text = translation.stub(book(), {}, "")
    assert parse(text, "f")["prose"].text == book().cells[0].source
    assert list(problems(book(), parse(text, "f"))) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text", "f:1: text before the first"),
        ("%% a\n", "f:1: '%% a': `%% CELL HASH` is wanted"),
        ("%% a 00000000\nx\n%% a 00000000\ny", "f:3: cell a stands there twice"),
        ('%% a 00000000\n< "x"\n', "f:1: '\"x\"' has no `> ` line"),
        ('%% a 00000000\n< "x"\ny', "begins with `< ` or `> `"),
    ],
)
def test_a_file_that_cannot_be_read_names_its_line(text, says):
    with pytest.raises(DataError) as caught:
        parse(text, "f")
    assert says in str(caught.value)
