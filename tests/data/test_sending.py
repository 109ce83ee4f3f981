"""Batches on their way to a GPU: what is copied where and when, on a stand-in for torch's streams."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae import data
from ppl_vae.data import sending
from ppl_vae.training import fitting


class Event:
    def __init__(self, log: list[str], name: str) -> None:
        self._log, self._name = log, name

    def synchronize(self) -> None:
        self._log.append(f"wait for {self._name}")


class Stream:
    """A stream that notes what it is asked for."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name, self.events = log, name, 0

    def record_event(self) -> Event:
        self.events += 1
        return Event(self.log, f"step {self.events - 1}")

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a GPU be there, whose streams note what happens."""
    log: list[str] = []
    now = Stream(log, "compute")
    current = ["compute"]

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current[:] = [stream.name]
        yield
        current[:] = ["compute"]

    def sent(self: Any, part: Tensor) -> Tensor:
        log.append(f"copied on {current[0]}")
        return part.clone()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(log, "copies"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(sending.Sender, "_sent", sent)
    monkeypatch.setattr(Tensor, "record_stream", lambda part, stream: log.append(f"kept for {stream.name}"))
    return log


def test_a_batch_is_copied_beside_the_steps_and_two_wait_at_most(log: list[str]) -> None:
    send = sending.Sender("cuda")
    batches = [(torch.full((2,), float(n)), torch.tensor([n, n])) for n in range(4)]
    for n, batch in enumerate(batches):
        log.clear()
        found = send(batch)
        assert all(torch.equal(a, b) for a, b in zip(found, batch, strict=True))
        waited = [f"wait for step {n - 2}"] if n >= 2 else []
        assert log == [
            *waited,
            "copied on copies",
            "copied on copies",
            "compute waits for copies",
            "kept for compute",
            "kept for compute",
        ]


def test_a_split_on_the_cpu_sends_its_batches_and_draws_on_the_device(log: list[str]) -> None:
    split = data.load("digits", binarize="dynamic").validation
    torch.manual_seed(0)
    here = [x for (x,) in split.batches(60)]
    torch.manual_seed(0)
    sent = [x for (x,) in split.batches(60, device="cuda")]
    assert all(torch.equal(a, b) for a, b in zip(sent, here, strict=True))
    assert log.count("copied on copies") == len(here)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_nothing_is_copied_where_no_gpu_is_asked_for(log: list[str], device: str | None) -> None:
    x = torch.arange(3.0)
    assert sending.Sender(device)(x) is x
    assert sending.Sender(device, torch.float64)((x,))[0].dtype == torch.float64
    assert not log


@pytest.mark.parametrize(("free", "where"), [(10**9, "cuda"), (2 * 10**5, "cpu")])
def test_data_stay_on_the_cpu_where_a_gpu_has_no_room_for_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int, where: str
) -> None:
    digits = data.load("digits")
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(data.Dataset, "to", lambda self, device, dtype: asked.append(str(device)) or self)
    with caplog.at_level("INFO", "ppl_vae.training.fitting"):
        fitting._placed(digits, torch.device("cuda"), None)
    assert asked == [where]
    assert ("they stay on the CPU" in caplog.text) == (where == "cpu")


@pytest.mark.gpu
def test_batches_arrive_on_a_gpu_as_they_are() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    split = data.load("digits").train
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    busy = torch.rand(4096, 4096, device="cuda")
    for here, (there,) in zip(split.x[order].split(16), split.batches(16, order=order, device="cuda"), strict=True):
        busy = busy @ busy.softmax(0)  # the GPU lies behind
        assert torch.equal(there.cpu(), here)
