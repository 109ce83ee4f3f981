"""Environments of their own for the peers, so that the package never depends on them.

    python benchmarks/peers.py install            # all of them: NumPyro takes a minute, pythae (with torch) 6 GB
    python benchmarks/peers.py install numpyro

Each is a virtual environment in ``benchmarks/.envs/``, made from the requirements in ``benchmarks/peers/``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".envs"
PEERS = tuple(sorted(path.stem for path in (HERE / "peers").glob("*.txt")))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["install"])
    parser.add_argument("peers", nargs="*", metavar="peer", help=f"of {', '.join(PEERS)}; all where none is named")
    arguments = parser.parse_args()
    if unknown := set(arguments.peers) - set(PEERS):
        parser.error(f"no peer is called {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    for peer in arguments.peers or PEERS:
        install(peer)


def install(peer: str) -> None:
    """Make the environment of a peer afresh, and show that it can be imported."""
    folder = ENVIRONMENTS / peer
    print(f"{peer}: into {folder}", flush=True)
    ENVIRONMENTS.mkdir(exist_ok=True)
    (ENVIRONMENTS / ".gitignore").write_text("*\n")
    venv.create(folder, clear=True, with_pip=True)
    run = [str(_python(peer)), "-m"]
    ready = folder / ".ready"
    subprocess.run([*run, "pip", "install", "--quiet", "-r", str(HERE / "peers" / f"{peer}.txt")], check=True)
    subprocess.run([str(_python(peer)), "-c", f"import {peer}"], check=True)
    ready.touch()


def python(peer: str) -> str | None:
    """The interpreter of a peer's environment, or None where it is not installed."""
    return str(_python(peer)) if (ENVIRONMENTS / peer / ".ready").exists() else None


def _python(peer: str) -> Path:
    return ENVIRONMENTS / peer / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


if __name__ == "__main__":
    main()
