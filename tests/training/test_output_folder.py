"""The output folder: nothing that a run did not make is deleted, and one run at a time."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest

from alpaca_lib import models
from alpaca_lib.errors import AdapterError, FileError, ModelError, SettingsError
from alpaca_lib.launch import launch, launcher
from alpaca_lib.training import adapters, checkpoints, output_folder
from alpaca_lib.training.__main__ import main
from alpaca_lib.training.loop import train
from alpaca_lib.training.settings import Settings


@pytest.fixture
def settings(small_folder, data_file, tmp_path):
    """Two steps of a copy of the small model, so that a test may lose it."""
    base = shutil.copytree(small_folder, tmp_path / "base")
    return Settings(
        data_path=str(data_file), output_dir=str(tmp_path / "run"), model=str(base), max_steps=2,
        examples_per_step=6, max_length=96, row_length=192, learning_rate=1e-2, device="cpu",
        dtype="float32",
    )  # fmt: skip


def snapshot(folder):
    """Every file of a folder with its content's checksum, and every link with its target."""
    return {
        str(p.relative_to(folder)): os.readlink(p)
        if p.is_symlink()
        else hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_symlink() or p.is_file()
    }


def refused(settings, kind, words):
    """Checks that a run is refused, by train and by launch, and that no file changed."""
    root = Path(settings.data_path).parent, Path(settings.model).parent
    before = [snapshot(folder) for folder in root]
    for start in (train, lambda given: list(launch(given, processes=1))):
        with pytest.raises(kind, match=words):
            start(settings)
        assert [snapshot(folder) for folder in root] == before


# --- what the run reads ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "where, words",
    [
        ("base", "is the folder of the model"),
        ("base/../base", "is the folder of the model"),
        pytest.param("link", "is the folder of the model", marks=pytest.mark.posix),
        ("base/deep/er", "is inside the folder of the model"),
        (".", "holds the folder of the model"),
    ],
)
def test_an_output_folder_that_is_the_models(settings, tmp_path, method, where, words):
    """Equal, by another spelling, by a link, inside, above: refused before any work."""
    if where == "link":
        (tmp_path / "link").symlink_to(tmp_path / "base")
    changes = {"output_dir": f"{tmp_path}/{where}", "method": method}
    refused(settings.replace(**changes), SettingsError, words)


def test_an_output_folder_that_is_an_adapters_or_its_bases(settings, tmp_path):
    """The adapter that a run begins with, and the base which that adapter names."""
    adapter = train(settings.replace(method="lora", output_dir=str(tmp_path / "adapter")))
    other = shutil.copytree(settings.model, tmp_path / "same" / "base")
    begun = settings.replace(method="lora", adapter=str(adapter), model=str(other))
    for where, words in {
        "adapter": "is the folder of the adapter",
        "adapter/new": "is inside the folder of the adapter",
        "base": "is the folder of the base model",
        "base/new": "is inside the folder of the base model",
    }.items():
        refused(begun.replace(output_dir=str(tmp_path / where)), SettingsError, words)


@pytest.mark.parametrize("name", ["data_path", "validation_path"])
@pytest.mark.parametrize("file", ["config.json", "run.json", "metrics.jsonl", "settings.json"])
def test_data_under_a_name_that_a_run_writes(settings, tmp_path, name, file):
    """It would be replaced; under another name data may be in the output folder."""
    (tmp_path / "run").mkdir()
    own = shutil.copy(settings.data_path, tmp_path / "run" / file)
    refused(settings.replace(**{name: str(own)}), SettingsError, f"writes {file} there, and {name}")
    mine = Path(shutil.move(own, tmp_path / "run" / "mine.json"))
    train(settings.replace(**{name: str(mine)}, max_steps=1))
    assert mine.read_bytes() == Path(settings.data_path).read_bytes()


def test_an_output_folder_under_a_file(settings, tmp_path):
    """A file, or a path through one, is named."""
    refused(settings.replace(output_dir=settings.data_path), (SettingsError, FileError), "file")
    below = settings.replace(output_dir=f"{settings.model}/config.json/run")
    refused(below, FileError, r"config\.json is a file; give a folder")
    (tmp_path / "a-file").write_text("mine")
    refused(settings.replace(output_dir=f"{tmp_path}/a-file/run"), FileError, "a-file is a file")


# --- what is in the folder already ----------------------------------------------------


def test_a_foreign_model_in_the_folder(settings, small_folder, tmp_path):
    """A model, a single one of its files, a tokenizer, other records: left, and refused."""
    out = tmp_path / "run"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "adapter_config.json"):
        out.mkdir()
        (out / name).write_bytes(b"{}")
        words = f"{name}: was not written by a run in this folder; give another output_dir"
        refused(settings, FileError, words)
        shutil.rmtree(out)
    for name, text in (("run.json", "[]"), ("run.json", "null"), ("run.json", '{"a": 1}'),
                       ("run.json", "\ufeff{"), ("metrics.jsonl", '{"mine": 1}\n')):  # fmt: skip
        out.mkdir()
        (out / name).write_text(text)
        refused(settings, FileError, name)
        shutil.rmtree(out)


def test_the_other_method_in_the_folder(settings):
    """A full run does not delete an adapter, nor a LoRA run a model, unless it starts over."""
    for first, second, words in (("lora", "full", "an adapter"), ("full", "lora", "a full model")):
        folder = train(settings.replace(method=first, resume="never"))
        refused(settings.replace(method=second), FileError, f"has {words}, which a run with method")
        train(settings.replace(method=second, resume="never"))
        marks = [(folder / name).is_file() for name in ("config.json", "adapter_config.json")]
        assert marks == ([True, False] if second == "full" else [False, True])
        shutil.rmtree(folder)


def test_only_files_of_a_run_are_replaced(settings, capsys):
    """A longer run replaces its own model; files next to it stay, and a changed one refuses."""
    settings = settings.replace(save_every=1)
    folder = train(settings)
    notes = {"notes.txt": "mine", "README.md": "my card", "model.gguf": "x"}
    for name, text in notes.items():
        (folder / name).write_text(text)
    (folder / "mine").mkdir()
    before = snapshot(folder)
    train(settings.replace(max_steps=3))
    after = snapshot(folder)
    assert before["model.safetensors"] != after["model.safetensors"]
    assert {name: (folder / name).read_text() for name in notes} == notes
    assert (folder / "mine").is_dir() and not (folder / output_folder.LOCK).exists()
    manifest = json.loads((folder / "model_files.json").read_text())["files"]
    assert manifest["model.safetensors"] == [after["model.safetensors"]]
    (folder / "config.json").write_text("{}")
    with pytest.raises(FileError, match=r"config\.json: was changed since a run in this folder"):
        train(settings.replace(max_steps=4))


def test_a_readme_of_the_users_stays(settings, capsys):
    """PEFT writes a card into an adapter folder; not over the user's."""
    folder = Path(settings.output_dir)
    folder.mkdir()
    (folder / "README.md").write_text("my card")
    train(settings.replace(method="lora"))
    assert (folder / "README.md").read_text() == "my card"
    assert "README.md: is left as it is" in capsys.readouterr().out


def test_files_of_an_earlier_model_go(tmp_path):
    """One file where there were two shards: the shards go, so that nothing loads them; and a
    stop before any of the changes leaves files that the next run accepts."""
    for stop in range(12):
        folder, work = tmp_path / f"run{stop}", tmp_path / f"work{stop}"
        for where, names in ((folder, "ab"), (work, "bc")):
            where.mkdir()
            for name in names:
                (where / f"model-{name}.safetensors").write_text(f"{where.name} {name}")
        output_folder.write_manifest(folder)
        calls, change = [0], (os.replace, os.unlink)

        def counted(function, calls=calls, stop=stop):
            def call(*arguments, **more):
                calls[0] += 1
                if calls[0] > stop:
                    raise KeyboardInterrupt
                return function(*arguments, **more)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name, function in zip(("replace", "unlink"), change, strict=True):
                patch.setattr(os, name, counted(function))
            try:
                output_folder.replace_model(work, folder)
                ended = True
            except KeyboardInterrupt:
                ended = False
        free = Settings(data_path="d", output_dir=str(folder))
        output_folder.check_free(free)  # nothing is taken for a foreign file
    assert ended
    assert {p.name: p.read_text() for p in folder.glob("model-*")} == {
        f"model-{name}.safetensors": f"work{stop} {name}" for name in "bc"
    }


# --- foreign checkpoints --------------------------------------------------------------


@pytest.mark.posix
def test_foreign_checkpoints_stay(settings, capsys):
    """Another program's checkpoint-N, a link, odd names and a file: never deleted, never taken
    for a checkpoint, each named in one line; a step that is taken gets its checkpoint."""
    folder = Path(settings.output_dir)
    strange = ["checkpoint-500", "checkpoint-1", "checkpoint-\u00b2", "checkpoint-007", "best-900"]
    strange += ["checkpoint-last", "best-1", ".my-partial"]
    for name in strange:
        (folder / name).mkdir(parents=True)
        (folder / name / "optimizer.pt").write_text(name)
    (folder / "checkpoint-3").symlink_to(folder / "checkpoint-500")
    (folder / "checkpoint-4").write_text("a file")
    (folder / "checkpoint-900").mkdir()
    (folder / "checkpoint-900" / "manifest.json").write_text('{"step": 900}')
    train(
        settings.replace(
            save_every=1, max_steps=3, validation_rows=3, eval_every=1, keep_best=True,
            keep_checkpoints=1,
        )
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "ignored and left as found" in said and "checkpoint-\u00b2" in said
    assert "checkpoint-1 was no checkpoint of a run here: it is now checkpoint-1.other1" in said
    moved = {"checkpoint-1": "checkpoint-1.other1"}
    if (folder / "best-1.other1").exists():
        moved["best-1"] = "best-1.other1"
    for name in strange:
        assert (folder / moved.get(name, name) / "optimizer.pt").read_text() == name
    assert os.readlink(folder / "checkpoint-3.other1") == str(folder / "checkpoint-500")
    assert (folder / "checkpoint-4").read_text() == "a file"
    assert checkpoints.find_newest(folder) == (folder / "checkpoint-3", 3)
    assert [step for step, _ in checkpoints.list_own(folder)] == [3]


# --- one run at a time ----------------------------------------------------------------

HOLD = """
import os, time
from alpaca_lib.training import output_folder
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed

with output_folder.claimed(Settings(data_path="d", output_dir=folder), Distributed(0, 1, 0)):
    connection.send(os.getpid())
    time.sleep(60)
"""


def test_two_runs_on_one_folder(settings):
    """The second is refused with the first's process and host; after a kill it may begin."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    values = {"folder": settings.output_dir, "connection": theirs}
    child = context.Process(target=exec, args=(HOLD, values), daemon=True)
    child.start()
    try:
        assert ours.poll(60)
        pid = ours.recv()
        words = f"another run writes in it .process {pid} on {socket.gethostname()}"
        refused(settings, FileError, words)
    finally:
        child.kill()
        child.join()
    assert (Path(settings.output_dir) / output_folder.LOCK).is_file()
    assert (train(settings) / "model.safetensors").is_file()


def test_a_folder_that_cannot_be_written(settings, monkeypatch):
    """Refused before any step, by name."""

    def read_only(path, *_, **__):
        raise PermissionError(30, "Read-only file system", str(path))

    monkeypatch.setattr(output_folder, "acquire_lock", read_only)
    with pytest.raises(FileError, match=r"run: cannot be written .Read-only file system"):
        train(settings)
    assert not Path(settings.output_dir).exists()


# --- merge, and adapters of adapters --------------------------------------------------


@pytest.fixture
def adapter(settings, tmp_path):
    """A trained adapter's folder."""
    return train(settings.replace(method="lora", output_dir=str(tmp_path / "adapter")))


def test_merge_into_a_folder_that_is_in_use(settings, adapter, tmp_path, capsys):
    """Into itself, its base, another model, any file: refused, and nothing has changed."""
    full = train(settings)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    for target, words in {
        adapter: "is the folder of the adapter",
        adapter / "merged": "is inside the folder of the adapter",
        Path(settings.model): "is the folder of the base model",
        full: "is not empty; give a new folder",
        tmp_path / "notes": "is not empty",
        tmp_path: "holds the folder of the adapter",
    }.items():
        for more in ([], ["--overwrite"]):
            assert main(["merge", str(adapter), str(target), *more]) == 1
            said = capsys.readouterr().err
            assert words in said or (more and "was not written by merge" in said)
            assert snapshot(tmp_path) == before


def test_merge_again(adapter, tmp_path, capsys):
    """A merged folder is replaced with --overwrite alone, and only if nobody changed it."""
    merged = tmp_path / "merged"
    adapters.merge(str(adapter), merged)
    with pytest.raises(FileError, match="merged: is not empty"):
        adapters.merge(str(adapter), merged)
    before = snapshot(merged)
    assert main(["merge", str(adapter), str(merged), "--overwrite"]) == 0
    assert snapshot(merged) == before
    (merged / "mine.txt").write_text("mine")
    with pytest.raises(FileError, match=r"mine\.txt: was not written by merge"):
        adapters.merge(str(adapter), merged, overwrite=True)
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_a_merge_that_fails_leaves_nothing(adapter, tmp_path, monkeypatch):
    """A full disk while saving: the target is absent, or what it was."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    adapters.merge(str(adapter), tmp_path / "old")
    before = snapshot(tmp_path)
    monkeypatch.setattr(output_folder, "write_manifest", full)
    for target, overwrite in ((tmp_path / "new", False), (tmp_path / "old", True)):
        with pytest.raises(FileError, match="No space left"):
            adapters.merge(str(adapter), target, overwrite)
        assert snapshot(tmp_path) == before


def test_adapters_in_a_circle(settings, adapter, tmp_path):
    """A base that is an adapter, itself or another: refused in words, loaded or trained."""
    second = shutil.copytree(adapter, tmp_path / "second")
    for folder, base in ((adapter, second), (second, adapter)):
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(base)
        (folder / "adapter_config.json").write_text(json.dumps(config))
    source = models.ModelSource.resolve(str(adapter))
    for load in (source.load_model, source.load_merged, source.load_tokenizer):
        with pytest.raises(ModelError, match="is an adapter too"):
            load() if load != source.load_tokenizer else source.base
    with pytest.raises(ModelError, match="is an adapter too"):
        adapters.merge(str(adapter), tmp_path / "merged")
    with pytest.raises(SettingsError, match="is a LoRA adapter; set adapter to it"):
        train(settings.replace(model=str(adapter)))
    assert not (tmp_path / "merged").exists()


def test_no_adapter_config(tmp_path):
    """A list, a FIFO, a deep nest: each an AdapterError, and none waits."""
    file = tmp_path / "adapter_config.json"
    for text in ("[]", "{", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(AdapterError, match="no readable adapter_config"):
            models.adapters.read_adapter_config(tmp_path)
    file.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(file)
        with pytest.raises(AdapterError, match="no readable adapter_config"):
            models.adapters.read_adapter_config(tmp_path)


# --- records that no run wrote --------------------------------------------------------


@pytest.mark.parametrize("content", [b"\xff\xfe{}\n", b"[1]\n", b'{"step": "x"}\n', b"{\n", b"\n"])
def test_metrics_that_no_run_wrote(settings, content):
    """Not UTF-8, not JSON, another program's: named with its line, and not rewritten."""
    folder = train(settings.replace(save_every=1))
    file = folder / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + content)
    before = file.read_bytes()
    with pytest.raises(FileError, match=r"metrics\.jsonl, line 3: no line of metrics"):
        train(settings.replace(save_every=1, max_steps=3))
    assert file.read_bytes() == before
    next(launcher._follow(file))  # who follows such a run is not stopped by it


@pytest.mark.parametrize("text", ["[]", "null", "5", '{"steps": null}', '{"steps": []}', "\ud83d"])
def test_a_run_json_that_is_none_has_no_end(tmp_path, text):
    """watch() goes on waiting, as for a file that is not there."""
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "run.json").write_text(text, errors="surrogatepass")
    assert launcher._finished_steps(tmp_path) == 0


@pytest.mark.parametrize("settings_text", ["[]", "null", '"x"'])
def test_a_checkpoint_without_settings(settings, settings_text):
    """A manifest of another shape is an error that names the checkpoint."""
    folder = train(settings.replace(save_every=1))
    file = folder / "checkpoint-2" / "manifest.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "settings": json.loads(settings_text)}))
    with pytest.raises(
        checkpoints.CheckpointError, match=r"checkpoint-2: its manifest\.json has no"
    ):
        train(settings.replace(save_every=1, max_steps=3))


def test_a_disk_that_fills_in_a_save(settings):
    """The system refuses the bytes: an error that names the checkpoint, the one before stays,
    and the same run resumes to the weights of an undisturbed one."""
    resource = pytest.importorskip("resource")
    whole = train(settings.replace(save_every=1, max_steps=3))
    limited = settings.replace(save_every=1, max_steps=3, output_dir=f"{settings.output_dir}2")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(line):
        if line["step"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    try:
        with pytest.raises(checkpoints.CheckpointError, match="checkpoint-2: was not written"):
            train(limited, report=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    folder = Path(limited.output_dir)
    assert checkpoints.find_newest(folder) == (folder / "checkpoint-1", 1)
    train(limited)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
