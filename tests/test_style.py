"""Style, floors and language: ruff, mypy, import contracts, docstrings, banned words."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "alpaca_lib").rglob("*.py"))
# Verbs that docstrings begin with, in the third person. Add one if it is a verb.
VERBS = frozenset((ROOT / "tests" / "docstring_verbs.txt").read_text(encoding="utf-8").split())
PER = r"(?:token|parameter|weight|label|step|rank|row|second|minute|hour|process|GPU|request|node)"
COUNTED = r"(?:nats|bytes|bits|tokens|seconds|[MG]B|FLOPs?|examples|rows|steps|requests|dollars)"
# Everyday words where the field has a term, and what to write.
DIALECT = {
    r"\bcures?\b|\bcured\b": "fix",
    r"\bdear(?:er|est)\b": "expensive",
    r"\banew\b": "again, or recompute",
    r"\btold\b": "given, requested, SIGTERM",
    r"\bbeside\b": "next to, with, as well as",
    r"\bgo(?:es|ing)? on (?:from|where|with|to)\b|\bgo on\b|\bgoes on\b|\bwent on\b": "resume",
    r"\bso many\b|\bso often\b": "that many, N",
    r"\bat the most\b": "at most",
    r"\bcannot be had\b": "unavailable",
    r"\bof which (?:they|it) (?:are|is)\b": "their",
    r"\bwhat became of\b|\bwhatever comes\b": "the outcome of",
    r"\bput together once\b": "all-gathered once per step",
    r"\bis never passed\b": "at most",
    r"\brequests that fly\b": "concurrent requests",
    r"\bplace that it is from\b": "source passage",
    r"\bcomes? to nothing\b": "fails",
    r"\blaid over\b": "applied to",
    rf"\b{COUNTED} an? {PER}\b": "per",
    r"\bAdam's averages\b|\btwo averages\b": "moments",
    r"\bwhole (?:model|weights|base|checkpoint)\b": "full, unsharded, complete",
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("words", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy",)])
def test_the_code_is_clean(words):
    done = run("-m", *words)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_go_down_and_in_no_circle():
    """The contracts of pyproject.toml: floors, stages apart, no circles, inside functions too."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = run("-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("stage, other", [("training", "inference"), ("models", "planning")])
def test_the_contracts_see_an_import_inside_a_function(tmp_path, stage, other):
    """A copy of the library with one import that goes sideways or up breaks a contract."""
    import shutil

    shutil.copytree(ROOT / "alpaca_lib", tmp_path / "alpaca_lib")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "alpaca_lib" / stage / "sneaky.py").write_text(
        f"def f():\n    import alpaca_lib.{other}.commands\n", encoding="utf-8"
    )
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0 and "sneaky" in done.stdout, done.stdout + done.stderr


PACKAGES = sorted(
    f"alpaca_lib.{p.parent.name}" for p in (ROOT / "alpaca_lib").glob("*/__init__.py")
)


@pytest.mark.parametrize("name", ["alpaca_lib", *PACKAGES, "alpaca_lib.cli"])
def test_packages_load_neither_torch_nor_transformers(name):
    """Importing a package is light; of generation and dataset every module is."""
    code = (
        f"import sys, importlib, pkgutil; m = importlib.import_module({name!r})\n"
        "if m.__name__ in ('alpaca_lib.generation', 'alpaca_lib.dataset'):\n"
        "    for found in pkgutil.iter_modules(m.__path__, m.__name__ + '.'):\n"
        "        if not found.name.endswith('__main__'):\n"
        "            importlib.import_module(found.name)\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_of_a_package_is_there(name):
    """What a package lists can be imported, and its page names each; no name hides a module."""
    code = (
        f"import importlib, pkgutil, pydoc; m = importlib.import_module({name!r})\n"
        "assert m.__doc__ and m.__all__\n"
        "modules = {f.name for f in pkgutil.iter_modules(m.__path__)}\n"
        "assert not modules & set(m.__all__), modules & set(m.__all__)\n"
        "for public in m.__all__:\n    assert getattr(m, public) is not None, public\n"
        "page = pydoc.render_doc(m, renderer=pydoc.plaintext)\n"
        "assert all(public in page for public in m.__all__)\n"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", LIBRARY, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_a_module_is_short_and_its_docstrings_begin_with_a_verb(file):
    """At most 350 lines; a docstring for each public function, which begins with a verb."""
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or file.name == "__init__.py"
    wrong = []
    for owner in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]:
        for node in owner.body:
            is_class = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
            if is_class and not ast.get_docstring(node):
                wrong.append(f"class {node.name}: no docstring")
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            decorators = {ast.unparse(d).rsplit(".", 1)[-1] for d in node.decorator_list}
            if node.name.startswith("_") or decorators & {"property", "cached_property", "setter"}:
                continue
            first = (ast.get_docstring(node) or "(none)").split()[0].strip(".,:")
            if first not in VERBS and not _is_inherited(owner, node):
                wrong.append(f"{node.name}: begins with {first!r}")
    assert not wrong, f"{file.name}: {wrong}"


def _is_inherited(owner: ast.AST, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a method has no docstring because the base class documents it."""
    return isinstance(owner, ast.ClassDef) and bool(owner.bases) and not ast.get_docstring(node)


def _texts() -> list[Path]:
    folders = ("alpaca_lib", "scripts", "benchmarks")
    found = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
    return [*found, ROOT / "course.py", ROOT / "README.md", ROOT / "data" / "README.md"]


@pytest.mark.parametrize("file", _texts(), ids=lambda f: f.relative_to(ROOT).as_posix())
def test_plain_technical_english(file):
    """No everyday word where the field has a term."""
    found = [
        f"line {number}: {hit[0]!r} -> {term}"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for pattern, term in DIALECT.items()
        if (hit := re.search(pattern, line, re.IGNORECASE))
    ]
    assert not found, found
