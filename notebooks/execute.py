"""Run notebooks in fresh kernels, without the network, and save what they print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

__all__ = ["executed"]

OFFLINE = """
def _refuse(event, args):
    import socket
    local = getattr(socket, "AF_UNIX", None)
    if event == "socket.getaddrinfo" or event == "socket.connect" and args[0].family != local:
        raise SystemExit("notebooks run offline, but this one called " + event)
__import__("sys").addaudithook(_refuse)
"""
"""What every kernel runs first. `SystemExit` is no `Exception`, so no library passes over it."""

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a new run, in a kernel of this very Python.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell raised an exception.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        # Sockets in a folder of our own: no port that others could reach.
        sockets = {"transport": "ipc", "ip": f"{folder}/kernel"}
        NotebookClient(
            notebook,
            kernel_name="python3",
            startup_timeout=600,
            record_timing=False,
            coalesce_streams=True,
            config=Config(KernelManager=sockets),
            resources={"metadata": {"path": str(path.parent)}},
            extra_arguments=[f"--IPKernelApp.exec_lines={OFFLINE}"],
        ).execute(env={**os.environ, **QUIET})
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, flush=True)
        nbformat.write(executed(Path(name)), name)
