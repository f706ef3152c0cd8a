"""requirements.txt and environment.yml hold the same set, and say what it is for."""

import re
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def lines(name: str, pattern: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return dict(re.findall(pattern, text, flags=re.MULTILINE))


def test_both_files_hold_the_same_packages_and_comments():
    requirements = lines("requirements.txt", r"^([\w.-]+[=<>]\S+)\s+# (.+)$")
    conda = lines("environment.yml", r"^      - ([\w.-]+[=<>]\S+)\s+# (.+)$")
    assert len(requirements) > 20
    assert requirements == conda


def test_every_package_says_which_notebooks_or_command_need_it():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line and not line.startswith(("#", "-c ")):
            assert re.search(r"# (0[1-5]|course\.py (run|test))", line), line


def test_the_pins_are_of_the_same_packages_and_within_their_bounds():
    requirements = lines("requirements.txt", r"^([\w.-]+)([=<>]\S+)\s+# ")
    pins = lines("constraints.txt", r"^([\w.-]+)==([\w.]+)$")
    assert list(pins) == list(requirements)
    for name, bounds in requirements.items():
        assert Requirement(name + bounds).specifier.contains(pins[name]), name
    assert "\n-c constraints.txt\n" in (ROOT / "requirements.txt").read_text(encoding="utf-8")


def test_every_package_of_the_library_is_listed():
    found = {p.parent for p in (ROOT / "alpaca_lib").rglob("__init__.py")}
    names = {p.relative_to(ROOT).as_posix().replace("/", ".") for p in found}
    listed = set(
        re.findall(r'^    "(alpaca_lib[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.M)
    )
    assert names == listed
