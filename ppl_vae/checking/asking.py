"""The questions of a check, asked one by one: an exception in one becomes a finding, and the check goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ppl_vae._words import one_line
from ppl_vae.checking import places
from ppl_vae.checking.report import Finding, Status

ROLES = ("prior", "likelihood", "posterior")
_FIRST = ("runs", "shapes", "draws", "finite")  # while one of these is wrong, numbers mean nothing


class Unanswered(Exception):  # noqa: N818 - the reason why a question has no answer, not a fault
    """The reason why a question has no answer for a piece."""


class Wrong(Exception):  # noqa: N818 - the answer to a question, not a fault of the check
    """The answer to a question where something is wrong.

    Args:
        sentence: What is wrong.
        fix: What to change.
        place: The line to change; None for the place that the question names.
        name: The name of the finding; by default that of the question.
    """

    def __init__(self, sentence: str, fix: str = "", place: str | None = None, name: str = "") -> None:
        super().__init__(sentence)
        self.sentence, self.fix, self.place, self.name = sentence, fix, place, name


def copied(thing: Any, name: str) -> Any:
    """Return a deep copy, or leave the question unanswered."""
    try:
        return copy.deepcopy(thing)
    except Exception as error:
        raise Unanswered(f"{name} cannot be copied ({type(error).__name__}: {error})") from error


def wrong_by(error: Exception, name: str = "") -> Wrong:
    """Return the refusal of another room as an answer: what stands after the first semicolon is the fix."""
    sentence, _, fix = one_line(error).partition("; ")
    return Wrong(sentence, fix, name=name)


class Findings:
    """The findings so far."""

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def _status(self, part: str, name: str) -> Status | None:
        return next((f.status for f in self.found if (f.part, f.name) == (part, name)), None)

    def ok(self, part: str, name: str, sentence: str) -> None:
        """Note that something is right."""
        self.found.append(Finding(part, name, "ok", sentence))

    def wrong(self, part: str, name: str, sentence: str, fix: str = "", place: str = "") -> None:
        """Note what is wrong. The first fault of a part and name counts, and replaces their other findings."""
        if self._status(part, name) != "wrong":
            self.found = [f for f in self.found if (f.part, f.name) != (part, name)]
            self.found.append(Finding(part, name, "wrong", sentence, fix, place))

    def skipped(self, part: str, name: str, why: object) -> None:
        """Note that something was not checked."""
        self.found.append(Finding(part, name, "not checked", one_line(why)))

    def is_wrong(self, *parts: str, names: tuple[str, ...] = (), but: str = "") -> str:
        """Return what to mend first: "part: name" of the first wrong finding about these parts (and names), else ""."""
        for f in self.found:
            if f.status == "wrong" and f.part in parts and f.name != but and (not names or f.name in names):
                return f"{f.part}: {f.name}"
        return ""

    def require(self, *parts: str, names: tuple[str, ...] = (), why: str = "") -> None:
        """Leave a question unanswered while a finding about these parts is wrong: any name but float64, or `names`."""
        if first := self.is_wrong(*parts, names=names, but="float64"):
            raise Unanswered(f"mend {first!r} first{why}")

    def ask(self, part: str, name: str, question: Callable[[], str | None], place: str = "") -> None:
        """Ask a question; an exception in the user's code becomes a finding.

        Args:
            part: The subject of the question.
            name: The question in a word or two.
            question: Returns a sentence on what is right, None if it noted its findings itself, or raises `Wrong` or
                `Unanswered`.
            place: The line to change where the answer names none.
        """
        if first := self.is_wrong(part, names=_FIRST):
            if self._status(part, "the rest") is None:
                self.skipped(part, "the rest", f"mend {first!r} first")
            return
        try:
            if (sentence := question()) is not None:
                self.ok(part, name, sentence)
        except Wrong as fault:
            where = place if fault.place is None else fault.place
            self.wrong(part, fault.name or name, fault.sentence, fault.fix, where)
        except Unanswered as why:
            self.skipped(part, name, why)
        except (NotImplementedError, KeyError) as error:  # Pyro's transforms without an inverse raise the latter
            self.skipped(part, name, reason(error))
        except Exception as error:
            sentence = f"failed: {type(error).__name__}: {one_line(error)[:300]}"
            self.wrong(part, name, sentence, "", places.of_error(error) or place)


def reason(error: NotImplementedError | KeyError) -> str:
    """Return why a question has no answer: the message of a `NotImplementedError`, else the repr of the error."""
    return str(error) if isinstance(error, NotImplementedError) and str(error) else repr(error)
