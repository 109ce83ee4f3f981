"""All that only a GPU can show, in stretches that add up.

    python benchmarks/gpu.py --minutes 14 --data /path/to/data    # the folder that holds MNIST/raw
    python benchmarks/gpu.py --minutes 10 --data ... --only steps article
    python benchmarks/gpu.py --report                             # the table of what is done

It needs no network. The parts run in this order, each by one command of its own:

    tests       the tests marked `gpu`, of CUDA graphs and of devices, one program a family
    steps       python benchmarks/run.py gpu
    kernels     python benchmarks/kernels.py: where the time of a step goes
    article     ppl-vae train --config article, 200 epochs, with TF32 and without
    evaluate    ppl-vae evaluate on the 10,000 test digits of that run
    compare     ppl-vae compare on that run: eight estimators, K = 1, 8, 64, a thousand replicates
    paper       examples/iwae_one_layer.yaml on the paper's 3,280 epochs, as far as the time goes, in each call further

Each part leaves FOLDER/PART.json as soon as it ends: what ran, how long, the exit code, the last lines, the machine.
A part that fails does not stop the others. The next call takes up where this one stopped: it skips what has
succeeded, repeats what has failed, and goes on with the paper's model. A part that does not fit into the minutes left
waits for the next call.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TAIL = 3000  # characters of the output that a result keeps
GRACE = 60.0  # seconds that a command has to end after it was asked to


@dataclass(frozen=True)
class Part:
    """A command, how long it may take, and what it aims at.

    Attributes:
        command: Its words.
        minutes: It is started only if so many are left, and ended after them.
        aim: What it should reach, in words.
        resumable: Whether it may be ended early, and is then continued by the next call.
        needs: The part before it whose run it looks at.
    """

    command: list[str]
    minutes: float
    aim: str = ""
    resumable: bool = False
    needs: str | None = None


def parts(folder: Path, data: Path, device: str, quick: bool) -> dict[str, Part]:
    """The parts in their order; `quick` shortens each to a minute on a CPU, to try this script."""
    vae = [sys.executable, "-m", "ppl_vae"]
    on = ["--device", device]
    mnist = ["--data.root", str(data)]
    article = [*vae, "train", "--config", "article", *mnist, *on, "--epochs", "1" if quick else "200"]
    paper = [*vae, "train", "--config", str(ROOT / "examples" / "iwae_one_layer.yaml"), *mnist, *on]
    paper += [
        "--epochs",
        "2" if quick else "3280",
        "--scheduler.gamma",
        str(0.1 ** (1 / 3280)),
        "--validate_every",
        "20",
    ]
    run, paper_run = folder / "article", folder / "paper"
    tests = ["tests/capture/test_cuda_graphs.py", "tests/test_devices.py", "tests/training/test_precision.py"]
    zoo = ["tests/test_zoo.py", "tests/data", "tests/capture", "tests/training"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-x" if quick else "--maxfail=50", "-p", "no:cacheprovider"]
    return {
        "tests": Part(
            [*pytest, "-m", "not slow and not gpu", *(tests[-1:] if quick else tests)],
            3,
            "all pass, under three minutes",
        ),
        "zoo": Part([*pytest, "-m", "gpu", *zoo], 3, "all pass"),
        "steps": Part(
            [sys.executable, "benchmarks/run.py", "small" if quick else "gpu", "--json", str(folder), "--rounds"]
            + (["1", "--seconds", "0.05"] if quick else ["7", "--seconds", "0.25", "--minutes", "2.5"]),
            4,
            "fit at most 1.05 of the whole step by hand, 1.0 of NumPyro, 1/30 of Pyro's SVI",
        ),
        "kernels": Part([sys.executable, "benchmarks/kernels.py", "--device", device], 3, "what bounds a step"),
        "article-tf32": Part(
            [*article, "--matmul_precision", "high", "--out", str(folder / "article-tf32")], 2, "20 s of training"
        ),
        "article": Part([*article, "--out", str(run)], 2, "35 s of training"),
        "evaluate": Part([*vae, "evaluate", str(run), *on], 2, "10 s", needs="article"),
        "compare": Part(
            [*vae, "compare", str(run), *on, "--replicates", "20" if quick else "1000"], 3, "30 s", needs="article"
        ),
        "paper": Part([*paper, *on], 4, "86.76 within 0.3 nats by K = 5,000", resumable=True),
        "paper-evidence": Part(
            [sys.executable, "examples/log_likelihoods.py", str(paper_run), "--particles", "20" if quick else "5000"]
            + ["--size", "50" if quick else "2000"],
            4,
            "86.76 at K = 1 after 3,280 epochs",
            needs="paper",
        ),
    }


def main(argv: list[str] | None = None) -> int:
    """The command line; returns 1 where a part has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=14, help="start nothing that would last longer (default: 14)")
    parser.add_argument("--data", type=Path, default=os.environ.get("PPL_VAE_DATA"), help="by default $PPL_VAE_DATA")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu", help="the folder of the results")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--quick", action="store_true", help="everything shortened, to try the script on a CPU")
    parser.add_argument("--report", action="store_true", help="print the table of what is done, and run nothing")
    arguments = parser.parse_args(argv)
    if arguments.report:
        print(report(arguments.out))
        return 0
    if arguments.data is None:
        parser.error("give --data, the folder that holds MNIST/raw")
    arguments.out.mkdir(parents=True, exist_ok=True)
    known = parts(arguments.out, arguments.data, arguments.device, arguments.quick)
    if unknown := set(arguments.only or ()) - known.keys():
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    end = time.monotonic() + 60 * arguments.minutes
    for name in arguments.only or known:
        take(name, known[name], arguments.out, end)
    print(report(arguments.out))
    return int(any(r["state"] == "failed" for r in results(arguments.out).values()))


def take(name: str, part: Part, folder: Path, end: float) -> None:
    """Run a part if it is not done, its run is there, and it fits into the time."""
    done = results(folder)
    if done.get(name, {}).get("state") == "done":
        return
    left = end - time.monotonic()
    if left < (60 if part.resumable else 60 * part.minutes):
        print(f"{name}: left for the next call, {left / 60:.1f} minutes are left", flush=True)
        return
    if part.needs is not None and not (folder / part.needs / "run.json").is_file():
        print(f"{name}: left for the next call, {part.needs} has left no run", flush=True)
        return
    print(f"{name}: {' '.join(part.command[:8])} ...", flush=True)
    began = time.perf_counter()
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(part.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment())
        try:
            code, ended = waited(process, min(left - GRACE / 2, 60 * part.minutes)), None
        except KeyboardInterrupt as interrupt:  # what is known so far is kept
            code, ended = waited(process, 0), interrupt
    seconds = time.perf_counter() - began
    stopped = code == 128 + signal.SIGINT and part.resumable
    earlier = done.get(name, {})
    found = {
        "part": name,
        "state": "done" if code == 0 else "to be continued" if stopped else "failed",
        "aim": part.aim,
        "command": " ".join(word.replace(str(ROOT), ".") for word in part.command[1:]),
        "seconds": round(seconds + (earlier.get("seconds", 0.0) if part.resumable else 0.0), 1),
        "code": code,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "output": (folder / f"{name}.log").read_text()[-TAIL:].replace(str(ROOT), "."),
    }
    (folder / f"{name}.part.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{name}: {found['state']} after {seconds:.0f} s", flush=True)
    if ended is not None:
        raise ended


def waited(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Return the exit code; after so many seconds ask the process to end, then end it."""
    for patience, ask in ((seconds, signal.SIGINT), (GRACE, signal.SIGKILL)):
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            process.send_signal(ask)
    return process.wait()


def environment() -> dict[str, str]:
    """This process's, in which the package of this checkout is found."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def machine() -> dict[str, Any]:
    """The GPU and the versions, asked in another process, so that this one holds no memory of the GPU."""
    code = (
        "import json, torch; cuda = torch.cuda.is_available(); print(json.dumps({'torch': torch.__version__, "
        "'gpu': torch.cuda.get_device_name() if cuda else None, 'cuda': torch.version.cuda}))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    return json.loads(found.stdout) if found.returncode == 0 else {"torch": "cannot be imported"}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The parts that have run, by name."""
    found = (json.loads(path.read_text()) for path in sorted(folder.glob("*.part.json")))
    return {result["part"]: result for result in found}


def report(folder: Path) -> str:
    """A table of the parts in Markdown, and the last lines of each."""
    done = results(folder)
    lines = ["| part | state | seconds | aimed at | GPU | date |", "|---|---|---|---|---|---|"]
    for name, found in done.items():
        gpu = found["machine"].get("gpu") or "none"
        lines.append(f"| {name} | {found['state']} | {found['seconds']} | {found['aim']} | {gpu} | {found['date']} |")
    for name, found in done.items():
        lines += ["", f"{name}: `{found['command']}`", "", "```", *found["output"].splitlines()[-15:], "```"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
