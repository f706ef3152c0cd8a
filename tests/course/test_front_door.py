"""course.py: its errors when something is missing."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("course_front_door", ROOT / "course.py")
course = importlib.util.module_from_spec(spec)
spec.loader.exec_module(course)


def test_help_names_every_command():
    done = subprocess.run([sys.executable, "course.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"course.py {command}" in done.stdout for command in course.COMMANDS)


def test_an_unknown_command_is_an_error(capsys):
    assert course.main(["train"]) == 2
    assert "no command 'train'; there are run, lab, test, check" in capsys.readouterr().err


def test_an_old_python_gets_an_error_with_the_fix(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert course.main(["run"]) == 2
    assert "needs Python 3.11 or newer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "bounds", "fit"),
    [
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.13.1", "==2.13.0", False),
        ("5.23.0", ">=5.17,<6", True),
        ("6.0", ">=5.17,<6", False),
        ("5.9", ">=5.17,<6", False),
        ("2026.10.11549", ">=2026.10", True),
        ("1", "", True),
    ],
)
def test_versions_are_compared_with_bounds(version, bounds, fit):
    assert course.fits(version, bounds) is fit


def test_this_environment_has_everything():
    assert course.missing_here() == []


def test_an_environment_with_packages_gets_what_it_lacks_and_keeps_its_torch(monkeypatch):
    """torch that is new enough is pinned to what is there; one that is too old is replaced."""
    seen = []
    monkeypatch.setattr(course, "missing_here", lambda: ["gradio>=6,<7", "numpy>=99"])
    monkeypatch.setattr(
        course,
        "install",
        lambda python, log, wanted: seen.append(
            (python, wanted, Path(wanted[-1]).read_text("utf-8"))
        ),
    )
    assert course.find_python(here=True) == sys.executable
    ((python, wanted, kept),) = seen
    assert python == sys.executable
    assert wanted[:3] == ["gradio>=6,<7", "numpy>=99", "-c"]
    assert re.search(r"^torch==2\.", kept, re.M) and re.search(r"^transformers==5\.", kept, re.M)
    assert "numpy" not in kept


def test_too_little_disk_is_an_error_before_anything_is_created(monkeypatch):
    usage = type("Usage", (), {"free": 1e9})
    monkeypatch.setattr(course.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(course.SetupError, match=r"1.0 GB free; .* about 7 GB"):
        course.make_venv(Path("no-such-python"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ERROR: No matching distribution found (from versions: none)", "cannot be reached"),
        ("NewConnectionError: Temporary failure in name resolution", "cannot be reached"),
        ("The user requested (constraint) torch==2.13.0", "in the versions of constraints.txt"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("error: externally-managed-environment", "leave out --here"),
        ("HINT: ... does not have Windows Long Path support enabled", "to a short one like C:\\"),
        ("ERROR: something new", "pip could not install"),
    ],
)
def test_a_failed_installation_is_explained(text, says, tmp_path):
    message = course.explain(text, tmp_path / "install.log")
    assert says in message
    assert "run the same command again" in message


def test_no_network_at_first_start_is_one_error_and_the_next_try_can_work(tmp_path):
    """A bare copy of the project, with a pip that can reach nothing."""
    for name in ("course.py", "requirements.txt", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    bare = Path(sys.base_prefix) / ("python.exe" if sys.platform == "win32" else "bin/python3")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    environment |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(empty),
        "PIP_CONFIG_FILE": os.devnull,
    }
    done = subprocess.run(
        [bare, "-S", "course.py", "check"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: the packages cannot be reached"), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".venv" / "course-stamp").exists()


def start_child(code, tmp_path):
    """A front door whose command is a Python program, in a process of its own."""
    starter = (
        f"import subprocess, sys; sys.path.insert(0, {str(ROOT)!r}); import course\n"
        f"sys.exit(course.wait_for(subprocess.Popen([sys.executable, '-c', {code!r}])))"
    )
    return subprocess.Popen([sys.executable, "-c", starter], stdin=subprocess.DEVNULL)


@pytest.mark.posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("deaf", [False, True])
def test_a_signal_reaches_the_command(name, deaf, tmp_path):
    """Its exit code is the command's own, or 128 + N; no process stays behind."""
    number = getattr(signal, name)
    marker = tmp_path / "pid"
    handler = "lambda *_: sys.exit(7)" if deaf else "signal.SIG_DFL"
    code = (
        "import os, pathlib, signal, sys, time\n"
        f"signal.signal({int(number)}, {handler})\n"
        f"p = pathlib.Path({str(marker)!r})\n"
        "p.with_suffix('.tmp').write_text(str(os.getpid())); p.with_suffix('.tmp').rename(p)\n"
        "time.sleep(100)"
    )
    process = start_child(code, tmp_path)
    deadline = time.monotonic() + 60
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == (7 if deaf else 128 + number)
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


def test_a_project_that_cannot_be_written_is_said_as_that(monkeypatch):
    """Not as a missing package of Debian's."""
    monkeypatch.setattr(course.os, "access", lambda path, mode: False)
    with pytest.raises(course.SetupError, match=r"cannot be written.*Copy the project") as caught:
        course.make_venv(Path("no-such-python"))
    assert "apt" not in str(caught.value)


def test_the_hub_is_shown_without_its_password(monkeypatch):
    from alpaca_lib.course import machine

    monkeypatch.setenv("HF_ENDPOINT", "http://user:secret@127.0.0.1:9/hub")
    status, _, text = machine._check_hub()
    assert (status, "secret" in text) == ("note", False) and "http://127.0.0.1:9/hub" in text


@pytest.fixture
def handed_over(monkeypatch):
    """A function: what ``course.py test`` with options starts, and its PYTEST_ADDOPTS."""
    calls = []
    monkeypatch.setattr(
        course.subprocess, "Popen", lambda words, **more: calls.append((words, more))
    )
    monkeypatch.setattr(course, "wait_for", lambda process: 0)

    def hand_over(*options):
        assert course.hand_over(sys.executable, "test", list(options)) == 0
        words, more = calls.pop()
        return words, more["env"].get("PYTEST_ADDOPTS", "").split()

    return hand_over


@pytest.mark.parametrize(("cores", "workers"), [(1, "0"), (2, "2"), (64, "4"), (None, "0")])
def test_the_suite_runs_in_several_processes(handed_over, monkeypatch, cores, workers):
    """As many as there are cores, up to four; the user's own -n comes later, and counts."""
    monkeypatch.setattr(course.os, "cpu_count", lambda: cores)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    words, added = handed_over("-x")
    assert words[-3:] == ["-x", "tests", "notebooks"] and added == ["-n", workers]
    monkeypatch.setenv("PYTEST_ADDOPTS", "-n 0 --lf")
    assert handed_over()[1] == ["-n", workers, "-n", "0", "--lf"]


def test_named_tests_run_in_one_process(handed_over, monkeypatch):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    words, added = handed_over("tests/test_files.py")
    assert words[-1] == "tests/test_files.py" and added == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], False),
        (["-m", "not slow"], False),
        (["-m", "not slow", "-x", "--tb=short"], False),
        (["-k", "cluster", "-n", "0"], False),
        (["-x", "tests/launch"], True),
        (["-m", "slow", "tests/launch/test_cluster.py::test_notes"], True),
    ],
)
def test_the_value_of_an_option_names_no_test(options, named):
    assert course.names_tests(options) is named


def test_notebooks_are_slow():
    """The quick tests leave them out, as `course.py test -m "not slow"` collects them."""
    words = ["--collect-only", "-p", "no:cacheprovider", "notebooks/01_self_instruct.ipynb"]
    command = [sys.executable, "-m", "pytest", *course.NBVAL, *words]
    environment = {**os.environ, "PYTEST_ADDOPTS": ""}  # -v changes what is printed
    for chosen, collects in (("slow", True), ("not slow", False)):
        done = subprocess.run(
            [*command, "-m", chosen], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert ("01_self_instruct.ipynb::Cell 1" in done.stdout) is collects, done.stdout
        assert done.returncode == (0 if collects else 5), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("system", "machine", "version", "says"),
    [
        ("linux", "x86_64", "", None),
        ("darwin", "arm64", "14.5", None),
        ("darwin", "arm64", "26.0", None),
        ("darwin", "arm64", "10.16", None),  # a newer one that says so to old programs
        ("darwin", "arm64", "13.6.1", "need macOS 14 or newer; this is 13.6.1"),
        ("darwin", "x86_64", "15.1", "built for Intel Macs. On Apple silicon install"),
    ],
)
def test_a_mac_without_packages_is_said_at_once(monkeypatch, system, machine, version, says):
    monkeypatch.setattr(course.sys, "platform", system)
    monkeypatch.setattr(course.platform, "machine", lambda: machine)
    monkeypatch.setattr(course.platform, "mac_ver", lambda: (version, ("", "", ""), machine))
    check_says(says)


@pytest.mark.parametrize(
    ("platform", "says"),
    [("win-amd64", None), ("win-arm64", "no packages for win-arm64"), ("win32", "64-bit Python")],
)
def test_a_windows_without_packages_is_said_at_once(monkeypatch, platform, says):
    monkeypatch.setattr(course.sys, "platform", "win32")
    monkeypatch.setattr(course, "IS_WINDOWS", True)
    monkeypatch.setattr(course.sysconfig, "get_platform", lambda: platform)
    check_says(says)


def check_says(says):
    """What the check of the system raises, before anything is created."""
    if says is None:
        course.check_system()
        return
    with pytest.raises(course.SetupError, match=re.escape(says)) as caught:
        course.check_system()
    assert "Colab" in str(caught.value)


def test_a_file_and_all_notebooks_stay_together():
    """Fixtures train once per file, and a lesson reads what the one before it has written."""
    spec = importlib.util.spec_from_file_location("suite_conftest", ROOT / "conftest.py")
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    assert suite.find_group("tests/a/test_b.py::test_c[d::e/f.ipynb]") == "tests/a/test_b.py"
    groups = {suite.find_group(f"notebooks/{n}.ipynb::Cell {n}") for n in range(5)}
    assert groups == {"notebooks"}
