"""The questions of a check, asked one by one: an exception in one becomes a finding, and the check goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ppl_vae.checking import places
from ppl_vae.checking.report import Finding

_FIRST = ("runs", "shapes", "draws", "finite")  # while one of these is wrong, numbers mean nothing


class Unanswered(Exception):  # noqa: N818 - the reason why a question has no answer, not a fault
    """The reason why a question has no answer for a piece."""


def reason(error: NotImplementedError | KeyError) -> str:
    """Return why a question has no answer: the message of a `NotImplementedError`, else the repr of the error."""
    return str(error) if isinstance(error, NotImplementedError) and str(error) else repr(error)


class Findings:
    """The findings so far."""

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def ok(self, part: str, name: str, sentence: str) -> None:
        """Note that something is right."""
        self.found.append(Finding(part, name, "ok", sentence))

    def wrong(self, part: str, name: str, sentence: str, fix: str = "", place: str = "") -> None:
        """Note what is wrong. The first fault of a part and name counts, and replaces their other findings."""
        if not any((f.part, f.name, f.status) == (part, name, "wrong") for f in self.found):
            self.found = [f for f in self.found if (f.part, f.name) != (part, name)]
            self.found.append(Finding(part, name, "wrong", sentence, fix, place))

    def skipped(self, part: str, name: str, why: str) -> None:
        """Note that something was not checked."""
        self.found.append(Finding(part, name, "not checked", " ".join(why.split())))

    def is_wrong(self, *parts: str, names: tuple[str, ...] = ()) -> str:
        """Return what to mend first: "part: name" of the first wrong finding about these parts (and names), else ""."""
        for f in self.found:
            if f.status == "wrong" and f.part in parts and (not names or f.name in names):
                return f"{f.part}: {f.name}"
        return ""

    def spoils_numbers(self, *parts: str) -> str:
        """Return the first wrong finding about these parts that makes numbers meaningless, as any but float64 does."""
        wrong = {f.name for f in self.found if f.status == "wrong" and f.part in parts}
        return self.is_wrong(*parts, names=tuple(wrong - {"float64"})) if wrong - {"float64"} else ""

    def ask(self, part: str, name: str, question: Callable[[], None], place: str = "") -> None:
        """Ask a question; an exception in the user's code becomes a finding."""
        if first := self.is_wrong(part, names=_FIRST):
            if not any((f.part, f.name) == (part, "the rest") for f in self.found):
                self.skipped(part, "the rest", f"mend {first!r} first")
            return
        with self._catching(part, name, place):
            question()

    @contextmanager
    def _catching(self, part: str, name: str, place: str) -> Iterator[None]:
        try:
            yield
        except Unanswered as why:
            self.skipped(part, name, str(why))
        except (NotImplementedError, KeyError) as error:  # Pyro's transforms without an inverse raise the latter
            self.skipped(part, name, reason(error))
        except Exception as error:
            message = " ".join(str(error).split())[:300]
            self.wrong(
                part,
                name,
                f"failed: {type(error).__name__}: {message}",
                "",
                places.of_error(error) or place,
            )
