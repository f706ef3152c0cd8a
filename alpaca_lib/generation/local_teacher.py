"""The grammar that llama.cpp, the local teacher, follows when it writes a list of tasks.

A 135M model loses the list's format after a task or two; a grammar enforces the format
at each token and leaves the content to the model.
"""

from __future__ import annotations


def task_grammar(first_number: int, tasks: int, no_input: str = "<noinput>") -> str:
    """Returns a GBNF grammar for ``tasks`` entries of the list, numbered from first_number.

    The reply begins after "N. Instruction:", as the prompt ends there.
    """
    numbers = range(first_number, first_number + tasks)
    rules = ["root ::= " + ' "###\\n" '.join(f"task-{n}" for n in numbers)]
    for n in numbers:
        heading = "" if n == first_number else f'"{n}. Instruction:" '
        rules.append(
            f'task-{n} ::= {heading}" " instruction "\\n{n}. Input:\\n" input '
            f'"\\n{n}. Output:\\n" output "\\n"'
        )
    rules += [
        # A letter first, then one sentence, without the format's # and <.
        # Bounded, as a small model seldom ends by itself.
        "instruction ::= letter [^\\n#<>.?!。？！]{8,140} [.?!。？！]",
        f'input ::= "{no_input}" | line',
        # A number may stand alone or begin a text, but not as "5.", which begins a heading.
        'output ::= line ("\\n" letter-or-dash [^\\n#<>]{1,120}){0,2}',
        'line ::= sentence (" " sentence){0,2} | [0-9]+ ([^\\n#<>.)0-9] [^\\n#<>]{0,80})?',
        "sentence ::= letter-or-dash [^\\n#<>.?!。？！]{1,140} [.?!。？！]",
        "letter ::= [^\\x00-\\x40\\x5b-\\x60\\x7b-\\x7f]",
        "letter-or-dash ::= letter | [-]",
    ]
    return "\n".join(rules) + "\n"
