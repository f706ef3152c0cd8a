"""Shows the planner's predictions as the tables of lesson 03."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alpaca_lib.course.notebooks import show_table
from alpaca_lib.planning import Plan, plan
from alpaca_lib.training import Settings

GB = 1e9
_TERMS = {  # column -> the planner's terms
    "weights": ("weights", "master weights"),
    "gradients": ("gradients",),
    "Adam": ("optimizer",),
    "activations": ("activations",),
}


def show_memory(settings: Settings, machines: Iterable[str]) -> None:
    """Shows what one GPU of each machine holds at its peak, by term, in GB.

    The last terms, "other", are gathered layers, logits and temporary tensors.
    """
    rows = []
    for machine in machines:
        found = plan(settings, machine)
        gb = [sum(found.memory.get(term, 0.0) for term in names) / GB for names in _TERMS.values()]
        gb += [found.peak / GB - sum(gb), found.peak / GB]
        rows.append([machine, *(f"{n:.1f}" for n in gb), "yes" if found.fits else "no"])
    show_table([f"{settings.model}, GB per GPU", *_TERMS, "other", "peak", "fits"], rows)


def show_costs(cases: Iterable[tuple[Settings, str]], price: float) -> None:
    """Shows layout, memory, minutes and dollars of each run; ``price``: per GPU hour."""
    rows = []
    for settings, machine in cases:
        p = plan(settings, machine, price=price)
        fits = "yes" if p.fits else "no"
        minutes, dollars = f"{p.seconds / 60:.0f}", f"${p.dollars:.0f}"
        peak = f"{p.peak / GB:.0f}"
        rows.append([settings.model, machine, str(p.sharding), peak, fits, minutes, dollars])
    head = ["model", "machines", "layout", "GB per GPU", "fits", "minutes", "cost"]
    show_table(head, rows)


def show_layouts(predicted: Plan, most: int = 3) -> None:
    """Shows FSDP over all GPUs, and the best layouts of tensor, pipeline and data parallelism.

    All are assumed to compute at the plan's rate, and to differ in what they wait for.
    """
    layouts: list[tuple[str, float, float]] = [("FSDP", predicted.peak, predicted.waits)]
    layouts += [(str(way), way.bytes, way.bubble) for way in predicted.paper[:most]]
    show_table(
        ["layout", "GB per GPU", "waits", "days", "cost"],
        [_layout_row(predicted, *layout) for layout in layouts],
    )


def _layout_row(predicted: Plan, name: str, held: float, waits: float) -> Sequence[str]:
    slower = (1 - predicted.waits) / (1 - waits)  # relative to the plan's own time
    days = predicted.seconds * slower / 86400
    millions = (predicted.dollars or 0.0) * slower / 1e6
    return name, f"{held / GB:.0f}", f"{waits:.0%}", f"{days:.0f}", f"${millions:.1f} million"
