"""The page, asked over HTTP as a browser asks it, in a process of its own."""

from PIL import Image

from tests.conftest import run_python

ASK = """
from gradio_client import Client, handle_file
from PIL import Image
from hrvqvae.model import Model
from hrvqvae.play.page import build_page

page = build_page(Model("mnist"))
_, address, _ = page.launch(prevent_thread_lock=True, quiet=True)
client = Client(address, verbose=False)
image, text = client.predict(handle_file("x.png"), 3, api_name="/reconstruct")
assert Image.open(image).size == (28, 28)
assert text.endswith(" bytes")
drawn = client.predict(4, "7", 1, 0, "1", api_name="/draw")
assert Image.open(drawn).convert("L").getextrema()[0] < 255
file = handle_file("x.png")
painted = {"background": file, "layers": [handle_file("half.png")], "composite": file}
completed = client.predict(painted, 2, "7", 1, 0, "1", api_name="/complete")
assert Image.open(completed).size[0] > 28
page.close(verbose=False)
"""


def test_a_page_reconstructs_draws_and_completes(tmp_path):
    Image.new("L", (28, 28), 90).save(tmp_path / "x.png")
    half = Image.new("RGBA", (28, 28))
    half.paste((0, 0, 0, 255), (0, 0, 28, 14))
    half.save(tmp_path / "half.png")
    run_python("-W", "ignore", "-c", ASK, cwd=tmp_path)
