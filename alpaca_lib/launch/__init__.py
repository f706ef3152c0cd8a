"""Starts training runs: in this process, in several on this machine, or on a cluster.

run(settings)                                     # in this process, if it fits its memory
for line in launch(settings, processes=2): ...    # on this machine, with torchrun
for line in watch("runs/alpaca"): ...             # a run that something else started
render("slurm", path, Cluster(nodes=2))           # the file that starts it on a cluster
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.errors import LaunchError as LaunchError
    from alpaca_lib.launch.cluster import KINDS as KINDS
    from alpaca_lib.launch.cluster import Cluster as Cluster
    from alpaca_lib.launch.cluster import notes as notes
    from alpaca_lib.launch.cluster import render as render
    from alpaca_lib.launch.launcher import free_port as free_port
    from alpaca_lib.launch.launcher import launch as launch
    from alpaca_lib.launch.launcher import run as run
    from alpaca_lib.launch.launcher import torchrun_line as torchrun_line
    from alpaca_lib.launch.launcher import watch as watch

__getattr__, __dir__, __all__ = attach(__name__, __file__)
