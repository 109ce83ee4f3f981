"""Output that cannot be written ends no work, and texts from files cannot steer a terminal."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading

import pytest
from short_runs import without_pictures

from ppl_vae import cli
from ppl_vae.cli.signals import Signals
from ppl_vae.cli.streams import Stream, guarded

TINY = [
    "train",
    "--compile",
    "off",
    "--epochs",
    "2",
    "--likelihood.network.hidden",
    "[4]",
    "--posterior.network.hidden",
    "[4]",
]


class Broken(io.StringIO):
    """A stream that fails from its second text on."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        if self.getvalue():
            raise self.error
        return super().write(text)


def test_control_characters_are_shown():
    raw = io.StringIO()
    Stream(raw).write("a\x1b[31mb\rc\x07\x9b\u202ed\n\te")
    assert raw.getvalue() == "a\\x1b[31mb\\x0dc\\x07\\x9b\\u202ed\n\te"
    line = io.StringIO()
    Stream(line, lines=True).write("\rx\x1b")
    assert line.getvalue() == "\rx\\x1b"


def test_letters_that_the_terminal_lacks_are_escaped():
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream = Stream(raw)
    stream.write("naïve")
    stream.flush()
    assert stream.failed is None
    assert raw.buffer.getvalue() == b"na\\xefve"


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), ValueError("closed")]
)
def test_a_stream_that_fails_is_left_alone(error):
    stream = Stream(Broken(error))
    for _ in range(3):
        print("line", file=stream)
    assert stream.failed is error


def test_a_closed_stream_is_none():
    stream = Stream(None)
    print("line", file=stream, flush=True)
    assert not stream.isatty()
    with pytest.raises(io.UnsupportedOperation):
        stream.fileno()


def test_streams_come_back(capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), guarded():
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_training_goes_on_without_its_output(name, error, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, name, Broken(error))
    with without_pictures():
        assert cli.main([*TINY, "--out", "run"]) == (1 if name == "stdout" else 0)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["stopped"] == "finished"


@pytest.mark.parametrize(("error", "code"), [(BrokenPipeError(32, "Broken pipe"), 141), (OSError(28, "full"), 1)])
def test_a_command_that_prints_ends_quietly_at_a_closed_pipe_and_not_on_a_full_disk(error, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken(error))
    assert cli.main(["--version"]) == code
    assert ("cannot be printed" in capsys.readouterr().err) == (code == 1)


def test_a_long_message_loses_its_middle(capsys):
    assert cli.main(["train", "--objective", "x" * 100_000]) == 2
    error = capsys.readouterr().err
    assert len(error) < 2_200
    assert error.startswith("ppl-vae: error: --objective is 'xxx")


def test_text_from_a_run_cannot_steer_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"data": {}, "caveat": "red \x1b[31m \x9b2J"}))
    assert cli.main(["show", "run"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x9b" not in out
    assert "\\x1b[31m" in out


# Signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_the_first_signal_asks_for_an_end_and_the_second_ends(name, capfd):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with Signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.exit_code == 128 + number
        assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert signal.getsignal(number) == before
    assert "a second signal aborts at once" in capfd.readouterr().err


class Signalling(io.RawIOBase):
    """A stream that sends its own process a signal in the midst of its first write."""

    sent = False

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        if not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)
        return len(data)


def test_a_signal_in_the_midst_of_a_print_is_answered(monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.BufferedWriter(Signalling()), line_buffering=True))
    with Signals() as stop:
        print("epoch 1/12", file=sys.stderr)
        assert stop()
    assert "a second signal aborts at once" in capfd.readouterr().err


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with Signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_where_a_signal_does_not_exist_the_others_work(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")
    with Signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()


def test_threads_leave_signals_alone():
    seen = []
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with Signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
