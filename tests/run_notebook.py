"""Run as a program: execute a notebook in its own folder, and write it back with its outputs.
Argument: its path.
"""

import sys
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

if __name__ == "__main__":
    path = Path(sys.argv[1])
    notebook = nbformat.read(path, as_version=4)
    # a socket of its own kind: with TCP the kernel warns that others on the machine can listen
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(path.parent / "kernel"))
    NotebookClient(
        notebook, km=manager, timeout=300, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    nbformat.write(notebook, path)
