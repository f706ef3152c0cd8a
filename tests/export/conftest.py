"""Evaluates the subset of Go's text/template that a Modelfile of this project uses."""

from __future__ import annotations

import json
import re

import pytest

ACTION = re.compile(r'\{\{ ((?:"(?:[^"\\]|\\.)*"|[^"])*?) \}\}', re.DOTALL)
ATOM = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+')


class Stopped(Exception):
    """A template that does not exist was called."""


@pytest.fixture(scope="session")
def evaluate():
    """A function that renders a template for conversations; None where it stops."""

    def evaluate(template, talks):
        texts = []
        for messages in talks:
            try:
                texts.append(render(template, messages))
            except Stopped:
                texts.append(None)
        return texts

    return evaluate


def render(template, messages):
    """The text of messages ({"role", "content"}) by a template, as Go's Execute writes it."""
    parts = ACTION.split(template)  # text, action, text, action, ..., text
    assert not any("{{" in text for text in parts[::2]), "an action that is not understood"
    tree, rest = _parse(parts[0:1] + parts[1:], 0)
    assert rest == len(parts)
    out, variables = [], {"$": {"Messages": messages}}
    _run(tree, {"Messages": messages}, variables, out)
    return "".join(out)


def _parse(parts, at):
    """(nodes, place after them), up to an else or end of the block."""
    nodes = []
    while at < len(parts):
        if at % 2 == 0:
            nodes.append(("text", parts[at]))
            at += 1
            continue
        action = parts[at]
        word = action.split()[0]
        if word in ("end", "else"):
            return nodes, at
        at += 1
        if word not in ("if", "range"):
            nodes.append(("do", action))
            continue
        branches, condition = [], action
        while True:
            body, at = _parse(parts, at)
            branches.append((condition, body))
            if parts[at] == "end":
                break
            condition = parts[at].removeprefix("else").strip()
            at += 1
        nodes.append((word, branches))
        at += 1
    return nodes, at


def _run(nodes, dot, variables, out):
    for kind, what in nodes:
        if kind == "text":
            out.append(what)
        elif kind == "do":
            _do(what, dot, variables, out)
        elif kind == "if":
            for condition, body in what:
                if not condition or _value(condition.removeprefix("if "), dot, variables):
                    _run(body, dot, variables, out)
                    break
        else:
            ((head, body),) = what
            index, element, source = re.fullmatch(r"range (\S+), (\S+) := (.*)", head).groups()
            for place, one in enumerate(_value(source, dot, variables)):
                variables |= {index: place, element: one}
                _run(body, one, variables, out)


def _do(action, dot, variables, out):
    if found := re.fullmatch(r"(\$\w+) :?= (.*)", action, re.DOTALL):
        variables[found[1]] = _value(found[2], dot, variables)
    elif action.startswith("template "):
        raise Stopped(action)
    else:
        out.append(_value(action, dot, variables))


def _value(text, dot, variables):
    atoms = ATOM.findall(text)
    found = _call(atoms, dot, variables)
    assert not atoms, text
    return found


def _call(atoms, dot, variables):
    values = []
    while atoms and atoms[0] != ")":
        values.append(_atom(atoms, dot, variables))
    first, *more = values
    if not callable(first):
        assert not more
        return first
    return first(*more)


FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "not": lambda a: not a,
    "len": len,
    "slice": lambda all_, start: all_[start:],
    "index": lambda all_, place: all_[place],
    "and": lambda *all_: all(all_),
}


def _atom(atoms, dot, variables):
    atom = atoms.pop(0)
    if atom == "(":
        value = _call(atoms, dot, variables)
        assert atoms.pop(0) == ")"
        while atoms and atoms[0].startswith("."):
            value = value[_field(atoms.pop(0))]
        return value
    if atom[0] == '"':
        text = re.sub(r"\\U(.{8})", lambda code: chr(int(code[1], 16)), atom)
        return json.loads(text, strict=False)
    if atom[0] == ".":
        return dot[_field(atom)]
    if atom[0] == "$":
        name, _, field = atom.partition(".")
        value = variables[name]
        return value[_field(f".{field}")] if field else value
    constants = {"true": True, "false": False}
    return constants[atom] if atom in constants else FUNCTIONS.get(atom) or int(atom)


def _field(name):
    return {".Role": "role", ".Content": "content", ".Messages": "Messages"}[name]
