"""The notebooks' figure of matrices side by side."""

import matplotlib
import pytest
import torch

from alpaca_lib.course import plots

matplotlib.use("Agg")


def test_all_squares_have_one_scale_with_white_at_zero():
    named = {"small": torch.full((2, 3), 0.5), "large": torch.tensor([[1.0, -4.0]])}
    fig, axes = plots.matrices(named, "two")
    images = [one.get_images()[0] for one in axes]
    assert [one.get_title() for one in axes] == ["small", "large"]
    assert [image.get_clim() for image in images] == [(-4.0, 4.0)] * 2
    assert images[0].get_array().shape == (2, 3)
    assert images[0].to_rgba(0.0)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.02)
    assert fig.get_suptitle() == "two"


def test_a_matrix_of_zeros_is_drawn(tmp_path):
    fig, _ = plots.matrices({"nothing": torch.zeros(2, 2)}, "")
    fig.savefig(tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").stat().st_size
