"""JSON replies, whole, broken and odd; and the newer spellings of the text format."""

from __future__ import annotations

import json

import pytest

from alpaca_lib.generation.filtering import parse_raw_reply
from alpaca_lib.generation.messages import RawReply
from alpaca_lib.generation.parsing import parse_json_reply, parse_reply, reply_schema
from alpaca_lib.records import Example

LENGTH = "cut off by the length limit"
FILTER = "stopped by the content filter"
NOT_A_TASK = "not an instruction, input and output in text"
TASKS = [
    Example("Explain how rain is made.", "", "Water rises and falls."),
    Example("Add the two numbers given.", "3 and 4", "7"),
    Example('Say {what} "[this]" means, \\ or not.', '{"a": [1, "}]"]}', 'A "brace": } and ]\n\t{'),
    Example("解释一下为什么天空是蓝色的", "“盐”", "光散射。🧂"),
]
ROWS = [{"instruction": t.instruction, "input": t.input, "output": t.output} for t in TASKS]


def row(**changes) -> dict:
    """A good row with changes; a value of ... leaves its key out."""
    changed = {**ROWS[1], **changes}
    return {name: value for name, value in changed.items() if value is not ...}


# --- whole replies ------------------------------------------------------------------

WHOLE = json.dumps({"tasks": ROWS})
SHAPES = {
    "an object": WHOLE,
    "readable Unicode": json.dumps({"tasks": ROWS}, ensure_ascii=False),
    "indented": json.dumps({"tasks": ROWS}, indent=2),
    "Windows": json.dumps({"tasks": ROWS}, indent=2).replace("\n", "\r\n"),
    "a bare list": json.dumps(ROWS),
    "white space around": f"\n\n  {WHOLE}\n ",
    "fenced": f"```json\n{WHOLE}\n```",
    "fenced, no language": f"```\n{WHOLE}\n```\n",
    "fenced, capitals": f"\n```JSON \n{json.dumps(ROWS, indent=1)}\n```\n\n",
    "more keys": json.dumps({"note": "n", "tasks": ROWS, "count": 4}),
}


@pytest.mark.parametrize("finish_reason", ["stop", "length", None])
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_replies(shape, finish_reason):
    """Each usual shape gives the four tasks, and nothing is left over."""
    reply = parse_json_reply(SHAPES[shape], finish_reason)
    assert reply.tasks == TASKS and reply.rejected == []


def test_one_task_alone():
    """An object that is a task itself is one task."""
    assert parse_json_reply(json.dumps(ROWS[2]), "stop").tasks == [TASKS[2]]


@pytest.mark.parametrize("text", ['{"tasks": []}', "[]"])
def test_no_tasks(text):
    """A list without tasks gives none, and is no fault of the format."""
    reply = parse_json_reply(text, "stop")
    assert reply.tasks == [] and reply.rejected == []


def test_fence_with_windows_line_ends():
    """A fenced reply with \\r\\n leaves nothing over either."""
    assert parse_json_reply(f"```json\r\n{WHOLE}\r\n```", "stop").rejected == []


@pytest.mark.parametrize("before", ["Sure! Here you are:\n", "Here are 4 tasks.\n```json\n"])
def test_words_around(before):
    """What a talkative model says around its JSON costs no task."""
    reply = parse_json_reply(f"{before}{WHOLE}\n```\nEnjoy!", "stop")
    assert reply.tasks == TASKS


# --- cut off ------------------------------------------------------------------------

CUT_SHAPES = {
    "object": json.dumps({"tasks": ROWS}, ensure_ascii=False),
    "escaped": json.dumps({"tasks": ROWS}),
    "indented": json.dumps({"tasks": ROWS}, indent=1),
    "list": json.dumps(ROWS, ensure_ascii=False),
    "fenced": f"```json\n{json.dumps({'tasks': ROWS})}\n```",
}


def ends_of_rows(text: str) -> list[int]:
    """Where each row's closing brace stands, found by its output alone."""
    ends, at = [], 0
    for one in ROWS:
        for escape in (True, False):
            last = json.dumps(one["output"], ensure_ascii=escape)
            if (found := text.find(last, at)) >= 0:
                at = text.index("}", found + len(last)) + 1
                ends.append(at)
                break
    return ends


@pytest.mark.parametrize("finish_reason, why", [("length", LENGTH), ("content_filter", FILTER)])
@pytest.mark.parametrize("shape", CUT_SHAPES)
def test_cut_at_every_character(shape, finish_reason, why):
    """The tasks whose object is complete are kept; the rest is one entry with the reason."""
    text = CUT_SHAPES[shape]
    ends = ends_of_rows(text)
    assert len(ends) == 4
    whole = max(text.rindex("]"), text.rindex("}")) + 1  # from here on, the JSON is complete
    for at in range(len(text) + 1):
        reply = parse_json_reply(text[:at], finish_reason)
        assert reply.tasks == TASKS[: sum(end <= at for end in ends)], text[:at]
        reasons = [one.reason for one in reply.rejected]
        if text[whole:at].strip() in ("", "```"):  # a fence may be cut as well
            assert reasons == ([] if at >= whole else [why]), text[:at]
        if reply.rejected and at:
            assert text[:at].strip().endswith(reply.rejected[0].text.strip())


def test_cut_without_a_reason():
    """A server that says "stop" although the reply breaks off: kept as well, and said so."""
    text = CUT_SHAPES["object"]
    for at in range(1, len(text)):
        reply = parse_json_reply(text[:at], "stop")
        assert reply.tasks == TASKS[: sum(end <= at for end in ends_of_rows(text))]
        assert [one.reason for one in reply.rejected] == ["not JSON"]


def test_every_character_in_turn_damaged():
    """Whatever one wrong character breaks: no exception, and no task that was not there."""
    text = CUT_SHAPES["object"]
    wrong = 0
    for at in range(0, len(text), 2):
        for character in '"\\{}[],:\x00\ud800':
            reply = parse_json_reply(text[:at] + character + text[at + 1 :], "stop")
            wrong += len(reply.tasks) < len(TASKS)
            assert len(reply.tasks) <= len(TASKS)
            assert reply.rejected or len(reply.tasks) == len(TASKS)
            assert all(task.instruction and task.output for task in reply.tasks)
    assert wrong > 500


# --- rows that are no tasks ---------------------------------------------------------

BAD_ROWS = {
    "text": "Explain how rain is made.",
    "number": 3,
    "null": None,
    "list": ["Explain how rain is made.", "", "x"],
    "empty": {},
    "no instruction": row(instruction=...),
    "no output": row(output=...),
    "null instruction": row(instruction=None),
    "null output": row(output=None),
    "number for output": row(output=7),
    "list for output": row(output=["7"]),
    "object for input": row(input={"a": 1}),
    "list for input": row(input=["3", "4"]),
    "number for input": row(input=5),
    "true for input": row(input=True),
    "number for instruction": row(instruction=5),
    "blank instruction": row(instruction=" \n"),
    "other names": {"Instruction": "Explain how rain is made.", "input": "", "output": "x"},
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_rows_that_are_no_tasks(name):
    """A wrong row is dropped with its own JSON; its neighbours stay."""
    bad = BAD_ROWS[name]
    reply = parse_json_reply(json.dumps({"tasks": [ROWS[0], bad, ROWS[1]]}), "stop")
    assert reply.tasks == TASKS[:2]
    assert [one.reason for one in reply.rejected] == [NOT_A_TASK]
    assert json.loads(reply.rejected[0].text) == bad


@pytest.mark.parametrize("given", [None, ..., "", " ", "<noinput>", "None", "n/a", "No input."])
def test_ways_to_have_no_input(given):
    """null, no key, a blank text and the marks of the text format are all no input."""
    reply = parse_json_reply(json.dumps([row(input=given)]), "stop")
    assert reply.tasks == [Example(ROWS[1]["instruction"], "", "7")] and reply.rejected == []


@pytest.mark.parametrize("given", [0, False, 0.0, [], {}])
def test_false_values_are_no_texts(given):
    """A number that happens to be 0 is not "no input": the task would miss its material."""
    reply = parse_json_reply(json.dumps([row(input=given)]), "stop")
    assert reply.tasks == []


def test_more_keys_are_ignored():
    """Keys that nobody asked for neither spoil a row nor get into it."""
    (task,) = parse_json_reply(json.dumps([row(id=3, category="sums")]), "stop").tasks
    assert task == TASKS[1] and task.extra == {}


def test_texts_are_trimmed():
    """White space around the texts goes, as in the text format; inside it stays."""
    padded = row(instruction="\n Add  the numbers given. ", input=" 3\n\n4\n", output="\t7\n")
    (task,) = parse_json_reply(json.dumps([padded]), "stop").tasks
    assert task == Example("Add  the numbers given.", "3\n\n4", "7")


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"instruction": "Add please"}, "too short"),
        ({"instruction": "Draw me the number given."}, '"draw"'),
        ({"instruction": "- add the two numbers."}, "symbol"),
        ({"output": " "}, "empty output"),
        ({"output": "I'm sorry, but I can't do that."}, "refused"),
    ],
)
def test_filter_rules_hold_for_json(changes, part):
    """The filters of the text format drop tasks here too, with their reasons."""
    reply = parse_json_reply(json.dumps([row(**changes), ROWS[0]]), "stop")
    assert reply.tasks == TASKS[:1]
    assert [part in one.reason for one in reply.rejected] == [True]


# --- no JSON at all -----------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " \n\t", "```json\n```", "```\n\n```"])
@pytest.mark.parametrize("finish_reason, why", [("stop", "empty reply"), ("length", LENGTH)])
def test_empty_replies(text, finish_reason, why):
    """Nothing at all is one rejected entry that says so."""
    reply = parse_json_reply(text, finish_reason)
    assert reply.tasks == [] and len(reply.rejected) == 1
    assert reply.rejected[0].reason == why or text.startswith("```json\n```")


@pytest.mark.parametrize(
    "text",
    [
        *("I'm sorry, but I can't help with that.", "[", "{", "}", "]", "[[[", '"', "null", "3"),
        *('"tasks"', "true", "NaN", "-", '{"tasks": 3}', '{"tasks": null}', '{"tasks": {}}'),
        *("[I cannot] do {that}", '{"tasks": [', "{" * 500, "[{" * 500, "\x00", "\ud800", "\ufeff"),
        *("<html><body>[{</body></html>", "9" * 5000, "[" + "9" * 5000 + "]", '{"tasks": "[{}]"}'),
    ],
)
def test_what_is_no_list_of_tasks(text):
    """Refusals, fragments and other JSON: no task, a reason, and no exception."""
    reply = parse_json_reply(text, "stop")
    assert reply.tasks == [] and reply.rejected
    assert all(one.reason in ("not JSON", NOT_A_TASK, "empty reply") for one in reply.rejected)


@pytest.mark.parametrize("depth", [100, 330, 500, 900, 990, 1000, 2000, 10_000, 100_000])
@pytest.mark.parametrize("inside", ["tasks", "input", "unknown key"])
def test_deep_nesting(depth, inside):
    """JSON nested deeper than Python's recursion: no task of it, and no exception."""
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        deep = opening * depth + "1" + closing * depth
        text = {
            "tasks": f'{{"tasks": {deep}}}',
            "input": f'[{{"instruction": "Add one to it.", "input": {deep}, "output": "x"}}]',
            "unknown key": f'[{json.dumps(ROWS[0])}, {{"x": {deep}}}]',
        }[inside]
        for reply in (parse_json_reply(text, "stop"), parse_json_reply(text[:-3], "length")):
            assert reply.tasks == TASKS[:1] * len(reply.tasks)
            assert len(reply.tasks) <= (inside == "unknown key") and reply.rejected


@pytest.mark.parametrize("escaped", [True, False])
def test_lone_surrogates(escaped):
    """Half an emoji, escaped or not, cannot be written as UTF-8: it becomes U+FFFD."""
    rows = [row(output="half \ud83d"), row(instruction="\udc00"), row(output=["\ud83d"])]
    reply = parse_json_reply(json.dumps(rows, ensure_ascii=escaped), "stop")
    assert [task.output for task in reply.tasks] == ["half \ufffd"]
    assert len(reply.rejected) == 2
    both = parse_json_reply(json.dumps([row(output="\ud83e\uddc2")], ensure_ascii=escaped), "stop")
    assert [task.output for task in both.tasks] == ["\U0001f9c2"]


def test_a_refusal_of_the_server_is_one():
    """The server's own field for refusals is a reason, whatever the format."""
    raw = RawReply(WHOLE, "stop", 1, 1, refusal="I must decline.")
    for reply_format in ("json", "text"):
        reply = parse_raw_reply(raw, 4, reply_format)
        assert reply.tasks == []
        assert [(r.reason, r.text) for r in reply.rejected] == [
            ("the teacher refused", "I must decline.")
        ]
    assert parse_raw_reply(RawReply(WHOLE, "stop", 1, 1), 4, "json").tasks == TASKS


# --- the schema ---------------------------------------------------------------------


def fits(value: object, schema: dict, root: dict) -> bool:
    """Whether a document fits a schema, for the few keywords that strict mode needs."""
    known = {"$defs", "$ref", "additionalProperties", "description", "items", "properties"}
    assert set(schema) <= known | {"required", "title", "type"}, "a keyword unknown here"
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if schema["type"] == "string":
        return isinstance(value, str)
    if schema["type"] == "array":
        return isinstance(value, list) and all(fits(one, schema["items"], root) for one in value)
    assert schema["type"] == "object"
    properties = schema["properties"]
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value)
        and (set(value) <= set(properties) or schema.get("additionalProperties") is not False)
        and all(fits(value[name], properties[name], root) for name in value if name in properties)
    )


def parts_of(schema: object):
    """A schema and all the schemas in it."""
    if isinstance(schema, dict):
        yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for one in schema:
            yield from parts_of(one)


def test_schema_is_strict():
    """What OpenAI's strict mode demands: every object closed, every property required."""
    wrapped = reply_schema()
    assert wrapped["type"] == "json_schema"
    inner = wrapped["json_schema"]
    assert inner["strict"] is True and inner["name"].isidentifier()
    objects = [part for part in parts_of(inner["schema"]) if part.get("type") == "object"]
    assert len(objects) == 2 and inner["schema"]["type"] == "object"
    for part in objects:
        assert part["additionalProperties"] is False
        assert set(part["required"]) == set(part["properties"])
    assert json.loads(json.dumps(wrapped)) == wrapped
    assert reply_schema() == wrapped


GOOD_DOCUMENTS = [{"tasks": []}, {"tasks": ROWS}, {"tasks": [row(input="")]}]
BAD_DOCUMENTS = [
    *([], "tasks", None, {}, {"tasks": None}, {"tasks": {}}, {"tasks": ROWS, "more": 1}, ROWS),
    *({"tasks": [bad]} for name, bad in BAD_ROWS.items() if name != "blank instruction"),
    *({"tasks": [row(input=given)]} for given in (None, ..., 0, [])),
    {"tasks": [row(category="sums")]},
]


def test_documents_against_the_schema():
    """Good documents fit, each bad one does not."""
    schema = reply_schema()["json_schema"]["schema"]
    assert all(fits(document, schema, schema) for document in GOOD_DOCUMENTS)
    for document in BAD_DOCUMENTS:
        assert not fits(document, schema, schema), document


def test_what_fits_the_schema_is_read():
    """Every document that fits is read with nothing rejected."""
    for document in GOOD_DOCUMENTS:
        reply = parse_json_reply(json.dumps(document), "stop")
        assert len(reply.tasks) == len(document["tasks"]) and reply.rejected == []


# --- newer spellings of the text format ---------------------------------------------

PARTS = [
    ("Explain how rain is made.", "<noinput>", "Water **rises**\n> and falls."),
    ("Add the two numbers given.", "3 and 4", "7"),
]
PAIR = [Example("Explain how rain is made.", "", PARTS[0][2]), TASKS[1]]
STYLES = {
    "plain": "{n}. {name}:",
    "bold": "**{n}. {name}:**",
    "bold, colon outside": "**{n}. {name}**:",
    "bold name": "{n}. **{name}:**",
    "underlined": "__{n}. {name}:__",
    "heading": "### {n}. {name}:",
    "bold heading": "## **{n}. {name}:**",
    "quotation": "> {n}. {name}:",
    "bracket": "{n}) {name}:",
    "capitals": "{n}. {NAME}:",
    "full-width colon": "{n}. {name}：",
    "Chinese": "{n}. {chinese}：",
    "Chinese, ASCII colon": "{n}. {chinese}:",
    "Chinese comma": "{n}、{chinese}：",
    "Chinese, bold": "**{n}. {chinese}：**",
    "Chinese, full-width stop": "{n}．{chinese}：",
}


def styled(style: str, parts=PARTS, first: int = 4, gap: str = "\n", line: str = "\n") -> str:
    """Tasks between lines of ###, under headings in one style."""
    blocks = []
    for n, texts in enumerate(parts, first):
        heads = [
            STYLES[style].format(n=n, name=name, NAME=name.upper(), chinese=chinese)
            for name, chinese in (("Instruction", "指令"), ("Input", "输入"), ("Output", "输出"))
        ]
        pairs = zip(heads, (" ", gap, gap), texts, strict=True)
        blocks.append(line.join(f"{head}{between}{text}" for head, between, text in pairs))
    return f"{line}###{line}".join(blocks) + line


@pytest.mark.parametrize("gap", ["\n", " ", "\n\n"])
@pytest.mark.parametrize("style", STYLES)
def test_headings_in_many_styles(style, gap):
    """However a model dresses its headings, the texts below them are the same."""
    reply = parse_reply(styled(style, gap=gap), "stop", 4)
    assert reply.tasks == PAIR and reply.rejected == []


@pytest.mark.parametrize("style", STYLES)
def test_first_heading_left_to_the_prompt(style):
    """The first heading is the prompt's; only later ones are dressed."""
    text = styled(style)
    text = text[text.index(PARTS[0][0]) :]
    text = text.replace("4、", "4. ") if style == "Chinese comma" else text
    assert parse_reply(text, "stop", 4).tasks == PAIR


@pytest.mark.parametrize("style", STYLES)
def test_windows_line_ends_in_every_style(style):
    """\\r\\n makes no difference to headings, marks and separators."""
    text = styled(style, line="\r\n", gap="\r\n").replace("\n> and", "\r\n> and")
    assert parse_reply(text, "stop", 4).tasks == PAIR


@pytest.mark.parametrize("opening", ["```\n", "```text\n", "\n```markdown \n", "```\r\n"])
@pytest.mark.parametrize("style", ["plain", "bold", "Chinese"])
def test_fence_around_the_whole_reply(style, opening):
    """A fence around everything is taken away, and the last output ends before it."""
    reply = parse_reply(f"{opening}{styled(style)}```\n", "stop", 4)
    assert reply.tasks == PAIR and reply.rejected == []


def test_fence_that_the_limit_left_open():
    """Only the opening of a fence: taken away; the cut task goes, the one before stays."""
    reply = parse_reply("```\n" + styled("plain"), "length", 4)
    assert reply.tasks == PAIR[:1]
    assert [one.reason for one in reply.rejected] == [LENGTH]


CODE = "```python\nprint(1)\n```"


def test_code_blocks_in_outputs():
    """A fenced answer keeps both its marks, except perhaps at the very end of a reply."""
    parts = [("Print the number one.", "<noinput>", CODE), PARTS[1]]
    assert parse_reply(styled("plain", parts), "stop", 4).tasks[0].output == CODE
    fenced = f"```\n{styled('plain', parts[::-1])}```"
    assert parse_reply(fenced, "stop", 4).tasks[1].output == CODE


@pytest.mark.parametrize("tail", ["", "\n"])
def test_code_block_at_the_end_of_a_reply(tail):
    """The same for the last answer of a reply that is not fenced itself."""
    parts = [PARTS[1], ("Print the number one.", "<noinput>", CODE)]
    tasks = parse_reply(styled("plain", parts).rstrip() + tail, "stop", 4).tasks
    assert [task.output for task in tasks] == ["7", CODE]


@pytest.mark.parametrize(
    "start", ["**Sort** the two numbers given.", "__init__ does what in Python?"]
)
def test_marks_at_the_start_of_an_instruction_are_its_own(start):
    """A reply that begins with ** or __: dropped as before ("a symbol"), or kept whole."""
    text = f"{start}\n4. Input:\n<noinput>\n4. Output:\nx\n"
    assert [task.instruction for task in parse_reply(text, "stop", 4).tasks] in ([], [start])


def test_marks_at_the_start_of_an_answer_are_its_own():
    """An answer in bold on the heading's own line keeps its marks."""
    text = " Name the capital of France.\n4. Input:<noinput>\n4. Output:**Paris** it is.\n"
    assert [task.output for task in parse_reply(text, "stop", 4).tasks] == ["**Paris** it is."]


@pytest.mark.parametrize(
    "heading, end", [("**4.** **Instruction:** ", ""), ("**4. Instruction: ", "**")]
)
def test_no_heading_gets_into_an_instruction(heading, end):
    """Two more ways to make a heading bold: read rightly, or not at all."""
    text = f"{heading}Add the two numbers.{end}\n4. Input:\n1, 2\n4. Output:\n3\n"
    tasks = parse_reply(text, "stop", 4).tasks
    assert [task.instruction for task in tasks] in ([], ["Add the two numbers."])


def test_reply_that_is_one_quotation():
    """Each line quoted: the texts come without "> ", or not at all."""
    text = "".join(f"> {line}\n" for line in styled("plain", PARTS[1:]).splitlines())
    assert parse_reply(text, "stop", 4).tasks in ([], [TASKS[1]])


@pytest.mark.parametrize("mark", ["无", "（无）", "无输入", "<无输入>", "没有"])
def test_chinese_ways_to_say_no_input(mark):
    """In Chinese too there are usual ways to say "none"."""
    parts = [("写一首关于春天的短诗。", mark, "春眠不觉晓。")]
    assert [task.input for task in parse_reply(styled("Chinese", parts), "stop", 4).tasks] == [""]


@pytest.mark.parametrize("finish_reason, why", [("content_filter", FILTER), ("length", LENGTH)])
@pytest.mark.parametrize("style", STYLES)
def test_text_reply_that_was_stopped(style, finish_reason, why):
    """Cut at any character: only tasks closed by ### are kept, the last is dropped."""
    text = styled(style)
    closed = text.index("###\n", text.index("falls.")) + 3
    for at in range(0, len(text), 3):
        reply = parse_reply(text[:at], finish_reason, 4)
        assert reply.tasks == (PAIR[:1] if at >= closed else [])
        if text[closed:at].strip() and not text[:at].rstrip().endswith("###"):
            assert [one.reason for one in reply.rejected] == [why]


@pytest.mark.parametrize(
    "finish_reason, why",
    [
        ("stop", "empty reply"),
        (None, "empty reply"),
        ("content_filter", FILTER),
        ("length", LENGTH),
    ],
)
@pytest.mark.parametrize("text", ["", " ", "\r\n", "\n\n\t"])
def test_empty_text_reply(text, finish_reason, why):
    """Nothing at all: one entry, whose reason is the one that the server gave."""
    reply = parse_reply(text, finish_reason, 4)
    assert reply.tasks == [] and [(r.reason, r.text) for r in reply.rejected] == [(why, "")]


@pytest.mark.parametrize(
    "output",
    [
        "See:\n**5. Instructions** for use\n> 4 Input: x",
        "1. 指令系统\n2. 输入法：拼音\n3. 输出\n4. 输入设备：键盘",
        "## 4. Inputs\n__4. Output__ is this\n4.5 Output: x",
        "#4. Input: a tag\n##### 4. Input: too deep",
    ],
)
def test_lines_that_only_look_like_headings(output):
    """Near-headings in an answer are text, in the newer spellings too."""
    parts = [(PARTS[0][0], PARTS[0][1], output), PARTS[1]]
    reply = parse_reply(styled("plain", parts), "stop", 4)
    assert [task.output for task in reply.tasks] == [output, "7"]


@pytest.mark.parametrize(
    "output", ["1. 输入：两个数\n2. 输出：它们的和", "1. Input: a\n2. Output: b"]
)
def test_numbered_answer_about_inputs_and_outputs(output):
    """A list whose numbers are not the task's belongs to the answer."""
    parts = [(PARTS[0][0], PARTS[0][1], output), PARTS[1]]
    assert [task.output for task in parse_reply(styled("plain", parts), "stop", 4).tasks] == [
        output,
        "7",
    ]
