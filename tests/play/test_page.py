"""The page, asked over HTTP as a browser asks it."""

import pytest
from PIL import Image

from hrvqvae.model import Model

pytest.importorskip("gradio")


@pytest.mark.filterwarnings("ignore")
def test_a_page_reconstructs_and_draws(tmp_path):
    from gradio_client import Client, handle_file

    from hrvqvae.play.page import build_page

    Image.new("L", (28, 28), 90).save(tmp_path / "x.png")
    page = build_page(Model("mnist"))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(address, verbose=False)
        image, text = client.predict(handle_file(tmp_path / "x.png"), 3, api_name="/reconstruct")
        assert Image.open(image).size == (28, 28)
        assert text.endswith(" bytes")
        drawn = client.predict(4, "7", 1, 0, "1", api_name="/draw")
        assert Image.open(drawn).convert("L").getextrema()[0] < 255
    finally:
        page.close(verbose=False)
