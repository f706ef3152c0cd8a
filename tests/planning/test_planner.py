"""The planner against arithmetic, published numbers, and what is really held in memory."""

from __future__ import annotations

import json
import math
from itertools import chain

import pytest
import torch

from alpaca_lib import command_line, models
from alpaca_lib.errors import ModelError
from alpaca_lib.planning import advise, check_memory, footprint, layout, plan, planner
from alpaca_lib.planning.commands import PLAN
from alpaca_lib.planning.footprint import Batch, Ledger, measure_footprint
from alpaca_lib.planning.layout import Machine, ShardingLayout, parse_machine
from alpaca_lib.planning.planner import Work
from alpaca_lib.planning.shapes import build_empty, list_weights, read_config
from alpaca_lib.training import adapters, attention, flops
from alpaca_lib.training.attention import Documents
from alpaca_lib.training.loss import LabelLoss
from alpaca_lib.training.micro_batches import plan_step
from alpaca_lib.training.packing import (
    collate,
    count_steps,
    join,
    padding_multiple,
    step_order,
)
from alpaca_lib.training.precision import MasterWeights, create_optimizer
from alpaca_lib.training.settings import Settings
from alpaca_lib.training.sharding import Distributed, layers_of

BASE = Settings(data_path="data.json", output_dir="out")
LENGTHS, LABELS = (40, 56, 32), 60


def wanted(**changes) -> Settings:
    return BASE.replace(**changes)


def numel(name: str) -> int:
    return sum(w.numel for w in list_weights(build_empty(read_config(name), torch.bfloat16)))


def test_shapes_have_the_published_numbers_of_parameters():
    assert numel("llama-7b") == 6_738_415_616
    assert numel("llama-65b") == 65_285_660_672
    assert numel("llama-3-70b") == 70_553_706_496
    assert numel("mistral-7b") == 7_241_732_096
    assert numel("qwen2.5-7b") == 7_615_616_512
    assert numel("qwen3-8b") == 8_190_735_360
    assert numel("opt-6.7b") == pytest.approx(6.7e9, rel=0.01)
    assert numel("gpt-100b") == pytest.approx(100e9, rel=0.02)
    assert numel("gpt-175b") == pytest.approx(175e9, rel=0.01)


def test_16_bytes_a_parameter_in_float32():
    made = plan(wanted(model="llama-7b", dtype="float32", epochs=3.0), "H200")
    held = sum(made.memory[term] for term in ("weights", "gradients", "optimizer"))
    assert held == 16 * 6_738_415_616  # 107.8 GB; Stanford's README counts 7 x 4 x 4 = 112


@pytest.mark.parametrize(("method", "cost"), [("full", 4.13e10), ("lora", 2.80e10)])
def test_flops_of_a_token(method, cost):
    work = Work(rows=1000, tokens=2048.0)
    made = plan(wanted(model="llama-7b", method=method), "H100", work)
    assert made.flops_per_token == pytest.approx(cost, rel=0.005)
    assert made.tokens == 1000 * 2048


@pytest.mark.parametrize(
    ("model", "gpu", "length", "speed", "mfu"),
    [
        ("llama-3-8b", "H100", 4096, 12_473, 0.407),  # NVIDIA NeMo AutoModel
        ("llama-7b", "A100-80", 1024, 2_392, 0.20),  # LLaMA-Factory's wiki: HF,
        ("llama-7b", "A100-80", 1024, 2_954, 0.25),  # FlashAttention 2,
        ("llama-7b", "A100-80", 1024, 4_007, 0.35),  # and Unsloth
    ],
)
def test_published_speeds_of_lora(model, gpu, length, speed, mfu):
    made = plan(wanted(model=model, method="lora"), gpu, Work(100, length), tokens_per_second=speed)
    assert made.mfu == pytest.approx(mfu, abs=0.015)
    assert made.seconds == pytest.approx(100 * length / speed)


def loaded(folder, kind: str, dtype: torch.dtype, settings: Settings):
    placement = models.Placement("cpu", str(dtype).removeprefix("torch."), "")
    model = models.ModelSource.resolve(str(folder)).load_model(placement, kind)
    attention.attach(model, "cpu", settings.max_length)
    if settings.method == "lora":
        model = adapters.add_lora(model, settings)
    module = LabelLoss(model)
    footprint.build.prepare(module, settings, "cpu")
    model.train()
    return module


def batch_of(lengths, labels: int, vocabulary: int, parents=()):
    total = sum(lengths)
    ids = torch.arange(total)[None] % vocabulary
    targets = torch.full((1, total), -100)
    targets[0, 1 : labels + 1] = 1
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    borders = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    return ids, targets, places, Documents.of(borders, "cpu", parents)


@pytest.mark.parametrize("parents", [(), (-1, 0, 0)], ids=["documents", "a shared prefix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_those_that_autograd_really_keeps(tiny_folder, dtype, parents):
    module = loaded(tiny_folder, "none", dtype, wanted())
    mine = {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    words = module.model.config.vocab_size
    attention._square_mask.cache_clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module(*batch_of(LENGTHS, LABELS, words, parents))
    config = read_config(str(tiny_folder))
    batch = Batch(1, sum(LENGTHS), LENGTHS, LABELS, parents)
    foot = measure_footprint(config, wanted(), "cpu", dtype, batch)
    # What the head holds outside autograd: the logits' memory, and the gradients it has computed.
    gradients = [gradient for gradient in loss.grad_fn.gradients if gradient is not None]
    held = sum(t.nbytes for t in [*module.head_loss._buffers.values(), *gradients])
    assert foot.kept == pytest.approx(sum(kept.values()) + held, rel=0.02)
    assert loss.requires_grad


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
def test_peak_of_lora_is_that_of_the_real_tensors(tiny_folder, kind, recompute):
    settings = wanted(method="lora", quantization=kind, activation_checkpointing=recompute)
    module = loaded(tiny_folder, kind, torch.bfloat16, settings)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    words = module.model.config.vocab_size
    batch = batch_of(LENGTHS, LABELS, words)
    attention._square_mask.cache_clear()
    ledger = Ledger(words)
    ledger.ignore([*module.parameters(), *module.buffers(), *batch[:3]])
    with ledger:
        loss = module(*batch)
        kept = ledger.live
        loss.backward()
    shape = Batch(1, sum(LENGTHS), LENGTHS, LABELS)
    config = read_config(str(tiny_folder))
    foot = measure_footprint(config, settings, "cpu", torch.bfloat16, shape)
    ids = 3 * 8 * sum(LENGTHS)
    assert foot.kept - ids == pytest.approx(kept, rel=0.02)
    assert foot.peak - ids == pytest.approx(ledger.peaks[0][0], rel=0.02)


@pytest.mark.parametrize("change", [{}, {"activation_checkpointing": True}, {"method": "lora"}])
def test_one_and_two_layers_predict_seven(make_tiny, change):
    config = make_tiny(num_hidden_layers=7).config
    settings, batch = wanted(**change), Batch(1, 128, (64, 64), 40)
    predicted = measure_footprint(config, settings, "cpu", torch.bfloat16, batch)
    seen = footprint._trace(config, settings, "cpu", torch.bfloat16, batch, 7)
    assert predicted.layers == 7
    assert predicted.kept == pytest.approx(seen.kept, rel=1e-3)
    assert predicted.peak == pytest.approx(seen.peak, rel=0.02)
    assert predicted.trained == seen.trained


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("masters", [True, False])
def test_masters_gradients_and_moments_are_the_real_ones(make_tiny, optimizer, masters):
    model = make_tiny(num_hidden_layers=3).bfloat16()
    settings = wanted(optimizer=optimizer, master_weights=masters)
    trained = MasterWeights(LabelLoss(model), Distributed(0, 1, 0), masters)
    stepped = create_optimizer(trained, optimizer, 1e-5, 0.0)
    held = trained.state(stepped)["optimizer"]
    shared = {"qmap1", "qmap2", "step"}
    averages = sum(
        t.nbytes for values in held.values() for k, t in values.items()
        if isinstance(t, torch.Tensor) and k not in shared
    )  # fmt: skip
    weights, foot = list_weights(model), footprint.Footprint(0, 0, 0, 0, (), 3, False)
    terms = layout.phases(settings, weights, foot, 2, ShardingLayout(1, 1, False), True)
    said = terms["optimizer step"]
    assert said["weights"] == sum(p.nbytes for p in model.parameters())
    assert said["optimizer"] == pytest.approx(averages, rel=0.01)
    copies = sum(m.nbytes for m in trained.masters.values()) if masters else 0
    assert said["master weights"] == copies
    gradients = sum(m.grad.nbytes for m in trained.masters.values() if m.grad is not None)
    if masters:
        assert said["gradients"] == gradients + trained._scratch.nbytes


@pytest.mark.parametrize("change", [{}, {"method": "lora"}, {"optimizer": "adamw8bit"}])
def test_more_gpus_never_need_more_memory_each(change):
    settings = wanted(model="llama-7b", examples_per_step=512, sharding="full", **change)
    peaks = [plan(settings, f"{n}xH100").peak for n in (1, 2, 8, 64)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < peaks[0] / 2


def test_a_quantised_base_is_unsharded_on_every_rank():
    settings = wanted(model="llama-7b", method="lora", quantization="nf4", examples_per_step=256)
    one, eight = plan(settings, "H100"), plan(settings, "8xH100")
    assert eight.memory["weights"] == one.memory["weights"]
    assert one.memory["weights"] == pytest.approx(4.17e9, rel=0.02)  # 9/16 of a byte, and 2
    assert "data parallel" in str(eight.sharding)


def test_hybrid_shards_lie_within_a_node():
    auto = plan(wanted(model="llama-7b", examples_per_step=256), "2x8xH100")
    full = plan(wanted(model="llama-7b", examples_per_step=256, sharding="full"), "2x8xH100")
    assert (auto.sharding.shard, full.sharding.shard) == (8, 16)
    assert auto.memory["optimizer"] == 2 * full.memory["optimizer"]
    assert str(auto.sharding).startswith("HSDP") and str(full.sharding).startswith("FSDP2")


def test_what_is_known_to_fit_fits():
    def fits(gpus, **changes):
        return plan(wanted(rows_per_micro_batch=1, **changes), gpus).fits

    recompute = {"activation_checkpointing": True}
    # QLoRA (arXiv:2305.14314): 65B on one GPU of 48 GB; Alpaca-LoRA: 7B in 8 bits on 24 GB.
    assert fits("RTX-A6000", model="llama-65b", method="lora", quantization="nf4", **recompute)
    assert not fits("RTX-A6000", model="llama-65b", method="lora", quantization="int8", **recompute)
    assert fits("RTX-4090", model="llama-7b", method="lora", quantization="int8", **recompute)
    # Stanford: 7B in float32 on four A100 with 80 GB, not on one.
    assert fits("4xA100-80", model="llama-7b")
    assert not fits("A100-80", model="llama-7b", **recompute)


def test_advice_is_what_fits_the_most_faithful_first():
    found = advise("llama-7b", "RTX-4090")
    assert found and all(way.fits for way in found)
    assert all(way.settings.method == "lora" for way in found)
    assert [way.settings.quantization for way in found] == ["none", "int8", "nf4"]
    assert advise("llama-7b", Machine("cuda", 1, 1, 3e9, rate=1e12)) == []


def test_beyond_one_engine_there_is_a_layout_on_paper():
    settings = wanted(model="gpt-175b", examples_per_step=2048)
    ways = plan(settings, "16x8xH100").paper
    assert ways and all(w.tensor * w.pipeline * w.data == 128 for w in ways)
    assert all(96 % w.tensor == 0 and 96 % w.pipeline == 0 for w in ways)
    assert all(w.bytes > 175e9 * 6 / (w.tensor * w.pipeline) for w in ways)
    assert plan(wanted(model="llama-7b"), "8xH100").paper == ()


def test_check_says_what_would_fit(tiny_folder, monkeypatch):
    placement = models.Placement("cpu", "bfloat16", "")
    settings = wanted(model=str(tiny_folder))
    assert check_memory(settings, placement, 1) is None
    monkeypatch.setattr(planner, "free_memory", lambda device: 1_000_000)
    advice = check_memory(settings, placement, 1)
    assert advice and "activation_checkpointing true" in advice and "GB" in advice
    monkeypatch.setattr(planner, "free_memory", lambda device: 0)  # unknown
    assert check_memory(settings, placement, 1) is None
    assert check_memory(wanted(model="no such model"), placement, 1) is None


@pytest.mark.parametrize(
    ("text", "count", "per_node"),
    [
        ("H100", 1, 1),
        ("8xH100", 8, 8),
        ("16x h100", 16, 8),
        ("3x4xA100-40", 12, 4),
        ("2xcpu", 2, 2),
    ],
)
def test_machines(text, count, per_node):
    machine = parse_machine(text)
    assert (machine.count, machine.per_node) == (count, per_node)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8xH10", "H100"), ("A100", "A100-80 or A100-40"), ("8 H100", "8xH100"), ("", "8xH100"),
        ("0xH100", "at least one"), ("12xH100", "nodes first"), ("8xV100", "no GPU 'V100'"),
    ],
)  # fmt: skip
def test_machines_that_are_none(text, says):
    with pytest.raises(ValueError, match="gpus") as error:
        parse_machine(text)
    assert says in str(error.value)


def test_models_and_settings_that_cannot_be(tmp_path):
    with pytest.raises(ModelError, match="did you mean 'llama-7b'"):
        plan(wanted(model="lama-7b"), "H100")
    with pytest.raises(ModelError, match="no such file"):
        plan(wanted(model=str(tmp_path / "config.json")), "H100")
    with pytest.raises(ValueError, match="unquantised weights"):
        plan(wanted(model="llama-7b", quantization="nf4"), "H100")


def test_a_configuration_file_is_enough(tmp_path):
    read_config("llama-7b").save_pretrained(tmp_path)
    made = plan(wanted(model=str(tmp_path / "config.json")), "H100")
    assert made.parameters == 6_738_415_616


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121), ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA A10G", None),
    ],
)  # fmt: skip
def test_devices_are_found_in_the_table(name, tflops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops.peak_rate("cuda") == (tflops and tflops * 1e12)


def printed(capsys, *arguments: str) -> tuple[int, str, str]:
    code = command_line.main("alpaca", "", [PLAN], ["plan", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_table_names_terms_formulas_and_the_command(capsys):
    code, out, err = printed(
        capsys, "--model", "llama-7b", "--gpus", "8xH100", "--price", "2.5", "--only"
    )
    assert (code, err) == (0, "")
    for words in ("master weights", "all-gathered", "activations", "total", "it fits",
                  "FLOPs per token 3.97e+10", "52,002 rows x 130", "8 x 989 TFLOP/s x 0.40",
                  "money", "--processes 8"):  # fmt: skip
        assert words in out, words
    line = next(text for text in out.splitlines() if "settings.json  {" in text)
    assert Settings.from_dict(json.loads(line.split("  ")[-1])).model == "llama-7b"


def test_no_price_no_money_and_errors_in_one_line(capsys):
    assert "money" not in printed(capsys, "--model", "llama-7b", "--gpus", "H100", "--only")[1]
    code, out, err = printed(capsys, "--model", "llama-7b", "--gpus", "8xH10")
    assert (code, out) == (1, "") and err.startswith("error: gpus") and err.count("\n") == 1


@pytest.mark.parametrize("rows", [1, 5, 127, 128, 129, 52_002])
@pytest.mark.parametrize("per_step", [1, 8, 128])
@pytest.mark.parametrize(
    ("epochs", "max_steps"), [(1.0, 0), (3.0, 0), (0.3, 0), (1.0, 1), (1.0, 9)]
)
def test_steps_are_those_of_the_engine(rows, per_step, epochs, max_steps):
    changes = {"examples_per_step": per_step, "epochs": epochs, "max_steps": max_steps}
    predicted = plan(wanted(model="llama-7b", **changes), "8xH100", Work(rows))
    assert predicted.steps == count_steps(rows, per_step, epochs, max_steps)
    if rows < 999 and predicted.steps % math.ceil(rows / per_step) == 0:  # full epochs
        trained = sum(len(step_order(rows, per_step, 0, s)) for s in range(predicted.steps))
        assert predicted.tokens == pytest.approx(130 * trained)


def test_three_epochs_of_alpaca():
    alpaca = wanted(model="llama-7b", examples_per_step=128, epochs=3.0)
    assert plan(alpaca, "8xH100").steps == 1221 == count_steps(52_002, 128, 3.0)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("per_step", [3, 10])
@pytest.mark.parametrize("header", [0, 10, 30])
@pytest.mark.parametrize("batching", ["pack", "bucket", "pad"])
def test_the_largest_micro_batch_is_the_engines(batching, header, per_step, ranks, tiny_folder):
    """Over all steps of a run, the largest tensor that the engine's functions make, and the
    share of the tokens that it computes; with a header that all but the shortest share."""
    rows = [
        {"input_ids": [1] * header + [n] * (n - header), "labels": [-100] * header + [1] * n}
        for n in (40, 90, 12, 64, 33, 90, 7, 55)
    ]
    for row in rows:
        row["labels"] = row["labels"][: len(row["input_ids"])]
    limits = {"max_length": 100, "row_length": 100, "rows_per_micro_batch": 2}
    settings = wanted(model=str(tiny_folder), batching=batching, examples_per_step=per_step)
    settings = settings.replace(**limits)
    predicted = plan(settings, Machine("cpu", ranks, ranks, rate=1.0), Work.of(rows))
    sizes, computed = [], 0
    for step in range(predicted.steps):
        chosen = [rows[i] for i in step_order(len(rows), per_step, settings.seed, step)]
        made = plan_step(settings, chosen, ranks, True, share=batching == "pack")
        for group in chain.from_iterable(made.groups):
            packed = [join(chosen, group, made.prefixes)] if batching == "pack" and group else []
            computed += sum(len(row.input_ids) for row in packed)
            padded = [join(chosen, [i]) for i in group]
            batch = collate(packed if batching == "pack" else padded, 0, padding_multiple("cpu"))
            sizes.append(batch["input_ids"].numel())
    assert predicted.batch.tokens == max(sizes)
    if batching == "pack":
        assert predicted.computed == computed / sum(len(row["input_ids"]) for row in rows)
        assert (predicted.computed < 1) is (header > 0 and per_step > ranks)


@pytest.mark.parametrize(("change", "by_document"), [({}, True), ({"sliding_window": 16}, False)])
def test_attention_is_that_of_the_engine(change, by_document, make_tiny, tmp_path):
    """A window shorter than an example: the engine packs one row, and so does the planner."""
    config = make_tiny().config.to_dict() | change | {"use_sliding_window": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = wanted(model=str(tmp_path / "config.json"), rows_per_micro_batch=4)
    predicted = plan(settings, Machine("cpu", 1, 1, rate=1.0), Work(1000, 100.0))
    assert (predicted.batch.tokens > settings.row_length) is by_document


def test_data_is_counted(tiny_folder, data_file, capsys):
    code, out, _ = printed(
        capsys, "--model", str(tiny_folder), "--gpus", "H100", "--data", str(data_file),
        "--examples-per-step", "4", "--epochs", "1", "--only",
    )  # fmt: skip
    assert code == 0 and "12 rows x" in out and "3 steps of 4" in out


def test_layers_and_machines_agree_with_the_engine(make_tiny):
    assert len(layers_of(build_empty(make_tiny(num_hidden_layers=5).config, torch.float32))) == 5
    machine = Machine("cpu", 2, 2)
    assert ShardingLayout.of(wanted(gather="step"), machine, 1) == ShardingLayout(2, 2, True)
    lora = ShardingLayout.of(wanted(method="lora", gather="step"), machine, 1)
    assert lora == ShardingLayout(2, 2, False)
