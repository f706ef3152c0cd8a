"""Checkpoints: what is saved comes back, and damage of every kind is found."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from alpaca_lib.training import checkpoints
from alpaca_lib.training.sharding import Distributed

ALONE = Distributed(0, 1, 0)


def state_of(model, optimizer):
    """What a run hands over: the trained tensors and the optimizer's moments by name."""
    names = {p: n for n, p in model.named_parameters() if p.requires_grad}
    return {
        "model": {n: p.detach() for p, n in names.items()},
        "optimizer": {names[p]: dict(values) for p, values in optimizer.state.items()},
    }


def save(folder, step, model, optimizer, record):
    """One checkpoint of one process."""
    return checkpoints.Saver(folder, ALONE).save(step, state_of(model, optimizer), record)


def load(folder, model, optimizer):
    """Loads it in place."""
    checkpoints.load(folder, state_of(model, optimizer), ALONE)


def trained(seed: int, steps: int = 3):
    """A small model and its optimizer after some steps."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(steps):
        model(torch.randn(4, 8)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints 1, 2 and 3."""
    for step in (1, 2, 3):
        save(tmp_path, step, *trained(step), {"settings": {"seed": step}})
    return tmp_path


def state_files(folder):
    """The files of a checkpoint but for its manifest."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")


def test_round_trip(saved):
    """Model and optimizer of another seed become those that were saved, to the bit."""
    model, optimizer = trained(2)
    other, other_optimizer = trained(99, steps=1)
    load(saved / "checkpoint-2", other, other_optimizer)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert optimizer.state[a].keys() == other_optimizer.state[b].keys()
        for key, value in optimizer.state[a].items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(other_optimizer.state[b][key])
            )
    torch.manual_seed(5)
    x = torch.randn(4, 8)
    for m, o in ((model, optimizer), (other, other_optimizer)):
        m(x).pow(2).mean().backward()
        o.step()
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_frozen_parameters_are_left_out(tmp_path):
    """Only what trains is in the checkpoint; loading leaves the frozen part as it is."""
    model, _ = trained(1)
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[2].parameters())
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    path = save(tmp_path, 1, model, optimizer, {})
    other, _ = trained(7)
    other[0].requires_grad_(False)
    frozen = other[0].weight.clone()
    optimizer = torch.optim.AdamW(other[2].parameters())
    other[2](torch.randn(4, 16)).sum().backward()
    optimizer.step()
    load(path, other, optimizer)
    assert torch.equal(other[2].weight, model[2].weight) and torch.equal(other[0].weight, frozen)


def test_record_and_layout(saved):
    """The manifest holds step and record, and lists every file."""
    record = checkpoints.read_record(saved / "checkpoint-3")
    assert record["step"] == 3 and record["settings"] == {"seed": 3}
    files = {
        p.relative_to(saved / "checkpoint-3").as_posix()
        for p in state_files(saved / "checkpoint-3")
    }
    assert files == set(record["files"]) and files
    assert sorted(p.name for p in saved.iterdir()) == [f"checkpoint-{n}" for n in (1, 2, 3)]
    assert checkpoints.find_damage(saved / "checkpoint-3") is None
    assert checkpoints.find_newest(saved) == (saved / "checkpoint-3", 3)


@pytest.mark.parametrize("how", ["flip", "truncate", "grow", "empty", "delete"])
def test_damage_to_each_file_is_found(saved, how):
    """One changed byte in any file, or a missing end: the file is named."""
    for number in range(len(state_files(saved / "checkpoint-3"))):
        copy = saved / "copy"
        shutil.copytree(saved / "checkpoint-3", copy)
        file = state_files(copy)[number]
        data = bytearray(file.read_bytes())
        if how == "flip":
            data[len(data) // 2] ^= 1
        changed = {"flip": data, "truncate": data[:-1], "grow": data + b"x", "empty": b""}.get(how)
        if changed is None:
            file.unlink()
        else:
            file.write_bytes(bytes(changed))
        assert file.name in str(checkpoints.find_damage(copy))
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "{}", '{"files": null}', '{"step": 3, "files": {"a": 5}}',
     '{"step": 3, "files": {"state/.metadata": {}}}', '{"step": 3, "files": []}', '{"files": {}}',
     '{"step": 3, "files": {}}'],
)  # fmt: skip
def test_damaged_manifest_is_found(saved, content):
    """A manifest that is cut or lists nothing: the checkpoint is damaged, no crash."""
    (saved / "checkpoint-3" / "manifest.json").write_text(content)
    assert "manifest" in str(checkpoints.find_damage(saved / "checkpoint-3"))


def test_newest_passes_over_damaged_ones(saved):
    """The newest intact one is taken; each skipped one is named with its reason."""
    (saved / "checkpoint-3" / "manifest.json").unlink()
    file = state_files(saved / "checkpoint-2")[-1]
    file.write_bytes(file.read_bytes()[:-1])
    (saved / "checkpoint-x").mkdir()
    (saved / ".checkpoint-9-partial").mkdir()
    said: list[str] = []
    assert checkpoints.find_newest(saved, said.append) == (saved / "checkpoint-1", 1)
    assert len(said) == 2
    assert "checkpoint-3" in said[0] and "manifest" in said[0]
    assert "checkpoint-2" in said[1] and file.name in said[1]
    shutil.rmtree(saved / "checkpoint-1")
    assert checkpoints.find_newest(saved, said.append) is None
    assert checkpoints.find_newest(saved / "nowhere") is None


def test_newest_counts_and_does_not_spell(saved):
    """Checkpoint 10 is newer than 9."""
    for step in (9, 10):
        save(saved, step, *trained(step), {})
    assert checkpoints.find_newest(saved) == (saved / "checkpoint-10", 10)
    checkpoints.remove_old(saved, keep=2)
    assert sorted(p.name for p in saved.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_leftovers_and_overwriting(saved):
    """A killed run's partial folder goes; saving a step again replaces it whole."""
    (saved / ".checkpoint-2-partial" / "state").mkdir(parents=True)
    model, optimizer = trained(50)
    save(saved, 2, model, optimizer, {"again": True})
    assert not list(saved.glob(".*"))
    assert checkpoints.read_record(saved / "checkpoint-2")["again"] is True
    assert checkpoints.find_damage(saved / "checkpoint-2") is None


def test_failed_save_leaves_no_checkpoint(tmp_path):
    """A record that JSON cannot hold: no folder under the final name."""
    with pytest.raises(TypeError):
        save(tmp_path, 4, *trained(1), {"x": object()})
    assert checkpoints.find_newest(tmp_path) is None and not (tmp_path / "checkpoint-4").exists()


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_called_that(saved, monkeypatch, background):
    """torch speaks of a place in its file; we of what is needed, what is free, and the cure."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    def refuse(state, checkpoint_id, **_):
        checkpoint_id.mkdir()
        (checkpoint_id / "begun").write_bytes(bytes(1000))
        raise CheckpointException("save", {0: (RuntimeError("unexpected pos 704"), None)})

    def later(*arguments, process_group, **more):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(refuse, *arguments, **more)

    monkeypatch.setattr(dcp, "save", refuse)
    monkeypatch.setattr(dcp, "async_save", later)
    model, optimizer = trained(1)
    needed = 3 * 4 * sum(p.numel() for p in model.parameters()) + 4 * len(optimizer.state)

    def refused(free):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: usage)
        saver = checkpoints.Saver(saved, ALONE, background)
        with pytest.raises(checkpoints.CheckpointError, match="checkpoint-4: was not w") as caught:
            saver.save(4, state_of(model, optimizer), {"settings": {}})
            saver.wait()
        return str(caught.value)

    assert "GB are free" in refused(needed - 1001) and "Make room" in refused(0)
    assert "unexpected pos" in refused(needed - 1000)  # there was room: something else
    assert checkpoints.find_newest(saved)[1] == 3


def test_background_save_is_that_of_the_moment(tmp_path):
    """Written while training goes on: the values of when save() was called, whole, and an
    error of the writing comes out at the next wait."""
    model, optimizer = trained(3)
    saver = checkpoints.Saver(tmp_path, ALONE, background=True)
    before = [p.detach().clone() for p in model.parameters()]
    path = saver.save(1, state_of(model, optimizer), {"settings": {}})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    saver.wait()
    assert checkpoints.find_damage(path) is None and checkpoints.find_newest(tmp_path) == (path, 1)
    load(path, model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    saver.save(2, state_of(model, optimizer), {"x": object()})
    with pytest.raises(TypeError, match="JSON"):
        saver.wait()
    assert checkpoints.find_newest(tmp_path) == (path, 1)


def test_another_models_state_is_refused(saved):
    """A checkpoint of other shapes: an error that names it."""
    other = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(other.parameters())
    other(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    with pytest.raises(checkpoints.CheckpointError, match="checkpoint-2"):
        load(saved / "checkpoint-2", other, optimizer)


def test_manifest_is_plain_json(saved):
    """Anyone can read the manifest."""
    assert json.loads((saved / "checkpoint-1" / "manifest.json").read_text())["step"] == 1


# --- a payload in a checkpoint ----------------------------------------------------------


class Payload:
    """A pickle of it calls a function that leaves a trace."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return Path.touch, (Path(self.trace),)


def sign(folder):
    """The manifest again, so that sizes and checksums fit what is in the folder."""
    files = {
        p.relative_to(folder).as_posix(): {
            "bytes": p.stat().st_size,
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for p in state_files(folder)
    }
    record = checkpoints.read_record(folder)
    (folder / "manifest.json").write_text(json.dumps({**record, "files": files}))
    assert checkpoints.find_damage(folder) is None


@pytest.mark.parametrize("where", ["alone", "in a record", "as a reduce of a record"])
def test_a_payload_in_the_metadata_does_not_run(saved, tmp_path, where):
    """DCP's .metadata is a pickle: one that calls a function is refused, whatever fits."""
    folder, trace = saved / "checkpoint-2", tmp_path / "ran"
    file = folder / "state" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    if where == "alone":
        content = pickle.dumps(Payload(trace))
    elif where == "in a record":
        metadata.planner_data["more"] = Payload(trace)
        content = pickle.dumps(metadata)
    else:  # protocol 0: names as text, another opcode
        metadata.storage_meta = Payload(trace)
        content = pickle.dumps(metadata, protocol=0)
    file.write_bytes(content)
    sign(folder)
    with pytest.raises(
        checkpoints.CheckpointError, match=r"metadata: refused: it names [\w.]+, which"
    ):
        load(folder, *trained(5))
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()  # it does run where pickle reads it


@pytest.mark.parametrize("what", ["plain value", "tensor"])
def test_a_payload_in_an_entry_does_not_run(tmp_path, what):
    """Entries that are no tensors are pickles as well, and a tensor's bytes could be one."""
    model, optimizer = trained(1)
    state, trace = state_of(model, optimizer), tmp_path / "ran"
    name = next(iter(state["optimizer"]))
    state["optimizer"][name]["plain"] = 7 if what == "plain value" else torch.zeros(3)
    path = checkpoints.Saver(tmp_path, ALONE).save(1, state, {})
    metadata = pickle.loads((path / "state" / ".metadata").read_bytes())
    index = next(i for i in metadata.storage_data if i.fqn == f"optimizer.{name}.plain")
    place = metadata.storage_data[index]
    payload = io.BytesIO()
    torch.save(Payload(trace), payload)
    file = path / "state" / place.relative_path
    place.offset, place.length = file.stat().st_size, len(payload.getvalue())
    file.write_bytes(file.read_bytes() + payload.getvalue())
    (path / "state" / ".metadata").write_bytes(pickle.dumps(metadata))
    sign(path)
    with pytest.raises(checkpoints.CheckpointError, match="checkpoint-1"):
        checkpoints.load(path, state, ALONE)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"x", b"N.", b"(lp0\n.", b"\x80\x04K\x01."])
def test_metadata_that_is_none(saved, content):
    """Not a pickle, or one of something else: an error that names the file."""
    folder = saved / "checkpoint-2"
    (folder / "state" / ".metadata").write_bytes(content)
    sign(folder)
    with pytest.raises(checkpoints.CheckpointError, match=r"state/\.metadata"):
        load(folder, *trained(5))


def test_metadata_that_leads_outside(saved, tmp_path):
    """A shard's name with a path in it is refused; plain entries come back as they were."""
    folder = saved / "checkpoint-2"
    file = folder / "state" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = f"../../../{place.relative_path}"
    file.write_bytes(pickle.dumps(metadata))
    sign(folder)
    with pytest.raises(checkpoints.CheckpointError, match="it names the file"):
        load(folder, *trained(5))


def test_plain_entries_come_back(tmp_path):
    """Numbers and texts of an optimizer, as bitsandbytes' step is one."""
    model, optimizer = trained(1)
    state = state_of(model, optimizer)
    for values in state["optimizer"].values():
        values["plain"], values["text"] = 7, "seven"
    path = checkpoints.Saver(tmp_path, ALONE).save(1, state, {})
    for values in state["optimizer"].values():
        values["plain"], values["text"] = 0, ""
    checkpoints.load(path, state, ALONE)
    assert {(v["plain"], v["text"]) for v in state["optimizer"].values()} == {(7, "seven")}


def test_a_file_that_the_manifest_does_not_list(saved):
    """An added file, a FIFO for a manifest, a path out of the folder: damaged, and none waits."""
    extra = saved / "checkpoint-3" / "state" / "more.distcp"
    extra.write_bytes(b"x")
    fault = checkpoints.find_damage(saved / "checkpoint-3")
    assert fault == "state/more.distcp is not in its manifest.json"
    manifest = saved / "checkpoint-2" / "manifest.json"
    record = json.loads(manifest.read_text())
    record["files"]["../checkpoint-1/manifest.json"] = {"bytes": 1, "sha256": ""}
    manifest.write_text(json.dumps(record))
    assert "no readable manifest.json" in str(checkpoints.find_damage(saved / "checkpoint-2"))
    manifest.write_text("[" * 100_000)
    assert "no readable manifest.json" in str(checkpoints.find_damage(saved / "checkpoint-2"))
    if hasattr(os, "mkfifo"):
        manifest.unlink()
        os.mkfifo(manifest)
        assert "no readable manifest.json" in str(checkpoints.find_damage(saved / "checkpoint-2"))
    assert checkpoints.find_newest(saved, say=lambda text: None)[1] == 1
