"""The findings of a check."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "wrong", "not checked"]

_WIDTH = 112


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes:
        part: The subject of the question: prior, likelihood, posterior, program, objective or a site of a Pyro program.
        name: The question in a word or two: ``"normalised"``.
        status: ``"ok"``, ``"wrong"`` or ``"not checked"``.
        sentence: The answer, with its numbers; or why there was no check.
        fix: What to change, where something is wrong.
        place: The line to change, ``mine.py:12, Mine.forward: return ...``, if its source can be read.

    Example:
        >>> print(Finding("prior", "shapes", "ok", "batch (), event (2,)"))
        ok           prior: shapes: batch (), event (2,)
    """

    part: str
    name: str
    status: Status
    sentence: str
    fix: str = ""
    place: str = ""

    def __str__(self) -> str:
        label = self.status.upper() if self.status == "wrong" else self.status
        lines = [f"{self.part}: {self.name}: {self.sentence}"]
        lines += [f"{what}: {text}" for what, text in (("fix", self.fix), ("at", self.place)) if text]
        wrapped = [part for line in lines for part in textwrap.wrap(line, _WIDTH, subsequent_indent="  ") or [""]]
        return "\n".join(f"{label if i == 0 else '':12} {line}" for i, line in enumerate(wrapped))


@dataclass(frozen=True)
class Report:
    """All findings of a check; true if nothing is wrong.

    Attributes:
        title: What was checked, and on which data.
        findings: In the order in which the questions were asked.

    Example:
        >>> report = Report("a prior", (Finding("prior", "shapes", "ok", "batch (), event (2,)"),))
        >>> bool(report), report.wrong
        (True, ())
    """

    title: str
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return not self.wrong

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The findings that say that something is wrong."""
        return tuple(finding for finding in self.findings if finding.status == "wrong")

    def __str__(self) -> str:
        count = {s: sum(f.status == s for f in self.findings) for s in ("wrong", "ok", "not checked")}
        right = f"{count['ok']} right, {count['not checked']} not checked"
        summary = f"{self.title}: {count['wrong']} wrong, {right}" if self.wrong else f"{self.title}: {right}"
        return "\n".join([summary, *map(str, self.wrong), *(str(f) for f in self.findings if f not in self.wrong)])
