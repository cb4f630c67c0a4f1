"""Write a page and all that it loads into one HTML file, which opens by a double click.

python web/inline.py BUNDLE OUT.html      the page in this folder, with the libraries of npm
"""

import base64
import json
import re
import sys
from pathlib import Path

WEB = Path(__file__).parent
MODULE = WEB.parent / "src/hrvqvae/export/javascript"
MODULES = ("bytes.js", "levels.js", "tables.js", "files.js", "network.js", "hrvqvae.js")
LIBRARIES = {"blurhash": "blurhash/dist/index.mjs", "thumbhash": "thumbhash/thumbhash.js"}


def joined_modules() -> str:
    """Return the module in one piece: its files in order of need, without imports and exports."""
    text = "\n".join((MODULE / name).read_text() for name in MODULES)
    text = re.sub(r"^import [^;]*;\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^export (\{[^}]*\};\n)?", "", text, flags=re.MULTILINE)


def one_file(page: str, script: str, bundle: Path, data: str = "") -> str:
    """Return a page with a script and a bundle inside.

    Args:
        page: HTML that ends its body after its last element.
        script: JavaScript that uses what the module exports; its own imports are left out.
        bundle: What `hrvqvae export --web` writes.
        data: Further elements, before the script.
    """
    script = re.sub(r"^import [^;]*;\n", "", script, flags=re.MULTILINE)
    content = base64.b64encode(bundle.read_bytes()).decode()
    added = (
        f'<script id="bundle" type="text/plain">{content}</script>\n{data}<script type="module">\n'
    )
    return page.replace("</body>", f"{added}{joined_modules()}\n{script}</script>\n</body>")


def main(bundle: str, out: str) -> None:
    """Write the page of this folder."""
    page = re.sub(r"<script.*</script>\n", "", (WEB / "index.html").read_text())
    examples, libraries = WEB / "examples.json", ""
    data = f'<script id="examples-data" type="application/json">{examples.read_text()}</script>\n'
    for name, path in LIBRARIES.items():
        if (WEB / "node_modules" / path).is_file():
            source = base64.b64encode((WEB / "node_modules" / path).read_bytes()).decode()
            libraries += (
                f"  {name}: await import({json.dumps(f'data:text/javascript;base64,{source}')}),\n"
            )
    script = f"globalThis.libraries = {{\n{libraries}}};\n" + (WEB / "page.js").read_text()
    Path(out).write_text(one_file(page, script, Path(bundle), data))


if __name__ == "__main__":
    main(*sys.argv[1:])
