"""Contenders in processes of their own, taking rounds in turn.

Whatever else the machine does then meets all alike, while one contender computes at a time: the others wait for a line.
The order is drawn anew for each round. Nothing here imports more than Python's own library, so that the peak memory of
a worker, which starts as a copy of this process, is its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
from contenders import EVERYONE, REFERENCE
from contenders.setting import Setting

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        rounds: How many.
        seconds: How long a contender's round is, about; five steps at least.
        cores: Pin every contender to the first so many cores; None for all.
        verbose: Show what the contenders' libraries print.
    """

    rounds: int = 20
    seconds: float = 0.4
    cores: int | None = None
    verbose: bool = False


class FailedError(Exception):
    """A contender cannot take part, and why."""


class Worker:
    """A contender in a process of its own, which starts to import at once.

    Raises:
        FailedError: From here or a method, when it cannot go on.
    """

    def __init__(self, name: str, setting: Setting, options: Options, env: Mapping[str, str] | None = None) -> None:
        peer = EVERYONE[name].peer
        python = sys.executable if peer is None else peers.python(peer)
        if python is None:
            raise FailedError(f"{peer} is not installed: python benchmarks/peers.py install {peer}")
        given = {
            "setting": dataclasses.asdict(setting),
            "cores": options.cores,
            "seconds": options.seconds,
            "started": time.time(),
        }
        self._process = subprocess.Popen(
            [python, str(HERE / "worker.py"), name, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            text=True,
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **(env or {})},
        )

    def hear(self) -> dict[str, Any]:
        """Wait for the next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"failed": "the process ended; --verbose shows what it printed"}
        if "failed" in answer:
            self.end()
            raise FailedError(answer["failed"])
        return answer

    def go(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last is still to be heard

    def ask(self) -> dict[str, Any]:
        """Let it go on, and wait for its answer."""
        self.go()
        return self.hear()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def race(setting: Setting, names: Sequence[str], options: Options) -> dict[str, Any]:
    """Let contenders take rounds in turn.

    Returns:
        ``setting``; ``contenders``: of each what `worker.serve` says of its set-up, and the milliseconds per step and
        the steps of every round; ``left_out``: of those that could not take part, why.
    """
    workers: dict[str, Worker] = {}
    found: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}

    def leave_out(name: str, why: FailedError) -> None:
        workers.pop(name, None)
        found.pop(name, None)
        left_out[name] = str(why)
        say(f"  {name}: left out: {why}")

    try:
        for name in names:  # all import at once, on whatever cores there are ...
            try:
                workers[name] = Worker(name, setting, options)
            except FailedError as why:
                leave_out(name, why)
        imported = {}
        for name, worker in list(workers.items()):
            try:
                imported[name] = worker.hear()
            except FailedError as why:
                leave_out(name, why)
        together = setting.device == "cuda"  # a core or two for each is enough there, and compiling takes a minute
        for worker in workers.values() if together else ():
            worker.go()
        for name, worker in list(workers.items()):  # ... and set up one by one, since then they compute
            try:
                set_up = worker.hear() if together else worker.ask()
                found[name] = {**imported[name], **set_up, "milliseconds": [], "steps": []}
                say(f"  {name}: ready, {1e3 * found[name]['steady_step']:.2f} ms per step")
            except FailedError as why:
                leave_out(name, why)
        order = random.Random(0)
        for _ in range(options.rounds):
            for name in order.sample(list(workers), len(workers)):
                try:
                    answer = workers[name].ask()
                except FailedError as why:
                    leave_out(name, why)
                    continue
                for what, value in answer.items():
                    found[name][what].append(value)
    finally:
        for worker in workers.values():
            worker.end()
    if REFERENCE in names and REFERENCE not in found:
        say(f"  no ratio: {REFERENCE} is missing")
    return {"setting": dataclasses.asdict(setting), "contenders": found, "left_out": left_out}


def say(message: str) -> None:
    """Tell whoever waits."""
    print(message, file=sys.stderr, flush=True)
