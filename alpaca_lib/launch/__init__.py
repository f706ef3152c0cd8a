"""Starts training runs: in this process, in several on this machine, or on a cluster.

run(settings)                                     # in this process, if it fits its memory
for line in launch(settings, processes=2): ...    # on this machine
for line in watch("runs/alpaca"): ...             # a run that something else started
render("slurm", path, Cluster(nodes=2))           # the file that starts it on a cluster
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_lib.lazy import attach

if TYPE_CHECKING:
    from alpaca_lib.errors import LaunchError
    from alpaca_lib.launch.cluster import KINDS, Cluster, notes, render
    from alpaca_lib.launch.launcher import launch, run, torchrun_line, watch
    from alpaca_lib.launch.local_ranks import free_port
    from alpaca_lib.launch.probe import usable_processes

__getattr__, __dir__, __all__ = attach(__name__, __file__)
