"""Pages that are served, and one thread for tiny models: two wait more than they compute."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """torch computes with one thread in these tests, and with as many as before after."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def serve_page():
    """A function that serves a page of these models, and returns a client of it."""
    gradio_client = pytest.importorskip("gradio_client")
    from alpaca_lib.inference import app

    pages = []

    def open_page(streams, policy=None, longest=2048):
        page = app.build(streams, longest=longest, policy=policy)
        address = app.start(page, quiet=True)
        pages.append(page)
        return gradio_client.Client(address, verbose=False)

    yield open_page
    for page in pages:
        page.close()
