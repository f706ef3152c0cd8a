"""Predicts the minutes of each lesson on this machine, from its rate of matrix products.

Training, and most of what else takes time, is matrix products; the rest is imports, start-ups and
llama.cpp, and does not depend on the dtype. So a lesson at its default parameters takes

    fixed seconds + TFLOP / (TFLOP/s of square matrix products in the dtype that is used)

with both numbers fitted to measured runs of ``python course.py run``; benchmarks/results/course.txt
has these runs.
"""

from __future__ import annotations

from alpaca_lib.models import Placement
from alpaca_lib.training.flops import gemm_rate

# lesson: (fixed seconds, TFLOP)
COSTS = {
    "01_self_instruct": (44.8, 7.1),
    "02_dataset_inspection": (4.5, 0.7),
    "03_full_finetune_fsdp": (74.2, 24.1),
    "04_lora_finetune": (53.3, 13.4),
    "05_inference_comparison": (60.9, 18.3),
}


def predict_minutes(placement: Placement) -> tuple[dict[str, float], float]:
    """Returns ({lesson: minutes}, FLOP/s): measures the rate of matrix products for half a second.

    The minutes are those of the default parameters, which are for a CPU.
    """
    rate = gemm_rate(placement.device, placement.torch_dtype)
    minutes = {
        name: (seconds + tflop * 1e12 / rate) / 60 for name, (seconds, tflop) in COSTS.items()
    }
    return minutes, rate
