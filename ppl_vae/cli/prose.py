"""Docstrings for a terminal: without LaTeX and without the marks of reStructuredText."""

from __future__ import annotations

import re
import shutil
import textwrap

_SYMBOLS = {  # of the formulas here and in torch.optim and Pyro, as far as they are not words by themselves
    "alpha": "α", "beta": "β", "gamma": "γ", "Gamma": "Γ", "Delta": "Δ", "epsilon": "ε", "eta": "η", "theta": "θ",
    "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ",
    "psi": "ψ", "ell": "l", "int": "integral", "infty": "inf", "subset": "in", "cdot": "*", "odot": "*", "pm": "+-",
    "le": "<=", "ge": ">=", "neq": "!=", "approx": "~", "sim": "~", "propto": "proportional to", "to": "->",
    "leftarrow": "<-", "mapsto": "->", "ldots": "...", "dots": "...", "lVert": "||", "rVert": "||", "lvert": "|",
    "rvert": "|", "partial": "d", "nabla": "grad", "top": "T", "quad": " ", "qquad": "  ", "lceil": "ceil(",
    "rceil": ")",
}  # fmt: skip
_STYLES = (
    "left|right|[Bb]igg?[lrm]?|displaystyle|limits|text(?:bf|it)?|math(?:rm|bf|cal|bb)|bf|hat|widehat|tilde|overline"
)
_DROPPED = rf"\\(?:{_STYLES})\b"
_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"


def plain(text: str) -> str:
    r"""Return a docstring, or a line of one, as a terminal shows it; formulas in words and Unicode.

    Example:
        >>> plain(r"``z`` is :math:`\mathcal N(\mu, \tfrac{1}{2} \sigma^{2})`, see `Prior`.")
        'z is N(μ, 1/2 σ^2), see Prior.'
    """
    text = re.sub(r"^([ \t]*)\.\. math::[ \t]*\n?((?:[ \t]+.*\n?|[ \t]*\n)*)", _block, text, flags=re.MULTILINE)
    text = re.sub(r"^\.\. .*\n?(?:[ \t]+.*\n?|\n)*", "", text, flags=re.MULTILINE)
    text = re.sub(r":math:`([^`]*)`", lambda m: _formula(m[1]), text)
    text = re.sub(r":[a-z:]+:`~?([^`<]*?)\s*(?:<[^>`]*>)?`", r"\1", text)
    text = re.sub(r"``([^`]*)``", r"\1", text)
    text = re.sub(r"`([^`<]*?)\s*(?:<[^>`]*>)?`_{0,2}(?!\w)", r"\1", text)
    text = re.sub(r"(?<![\w*])\*{1,2}([^\s*](?:[^*\n]*[^\s*])?)\*{1,2}(?![\w*])", r"\1", text)  # emphasis
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def fit(text: str, width: int | None = None) -> str:
    """Return a text in lines of at most `width` characters, as far as words allow; paragraphs have 100 at most.

    Without `width` the lines are as wide as the terminal.

    Lines that start an item (``- ...``), a command (``ppl-vae ...``) or have columns stay apart, and what follows in
    the second column hangs under it, or goes below where there is no room.
    """
    width = shutil.get_terminal_size().columns if width is None else width
    done = []
    for paragraph in text.strip("\n").split("\n\n"):
        items: list[str] = []
        for line in paragraph.splitlines():
            apart = not items or re.match(r"- |ppl-vae |usage:|\s", line) or "  " in line or "  " in items[-1].strip()
            below = items and ((line.startswith("  ") and items[-1].startswith("- ")) or line.startswith(" " * 9))
            if apart and not below:
                items.append(line)
            else:
                items[-1] += f" {line.strip()}"
        done.append("\n".join(_hanging(item, width) for item in items))
    return "\n\n".join(done) + "\n"


def _hanging(item: str, width: int) -> str:
    def fill(part: str, first: str, rest: str, most: int = width) -> str:
        wrapper = textwrap.TextWrapper(most, initial_indent=first, subsequent_indent=rest)
        wrapper.break_on_hyphens = wrapper.break_long_words = False
        return wrapper.fill(part)

    columns = re.fullmatch(r"(\s*)(\S.*?)(\s{2,})(\S.*)", item)
    if len(item) <= width and (columns or item[:1] == " "):
        return item
    if columns is None and item.startswith(("ppl-vae ", "usage:", " ")):
        return fill(item, "", "    ")
    if columns is None:
        return fill(item, "", "  " if item.startswith("- ") else "", min(width, 100))
    indent, left, gap, right = columns.groups()
    column = len(indent + left + gap)
    if column <= width // 2:
        return indent + left + gap + fill(right, " " * column, " " * column).lstrip()
    return f"{indent}{left}\n{fill(right, f'{indent}    ', f'{indent}    ')}"


def _block(found: re.Match[str]) -> str:
    if "textbf" in found[2]:  # an algorithm of torch.optim, which says nothing without its layout
        return ""
    tex = re.sub(r"\\(?:begin|end)\{[^}]*\}(?:\{[^}]*\})?|&", "", found[2])
    lines = [" ".join(line.split()) for line in tex.split(r"\\")]
    shown = [f"{found[1]}    {line}" for line in map(_formula, lines) if line]
    return "\n".join(["", *shown, "", ""])


def _formula(tex: str) -> str:
    """Return a formula without LaTeX."""
    tex = re.sub(r"\\(?:hspace|vspace|label|tag)\*?\{[^}]*\}|\\\s?rule.*|\\\[.*?\]", "", tex)
    tex = re.sub(_DROPPED, "", tex)
    for _ in range(3):  # one inside another
        tex = re.sub(rf"\\[td]?frac\s*{_GROUP}\s*{_GROUP}", lambda m: f"{_whole(m[1])}/{_whole(m[2])}", tex)
        tex = re.sub(rf"\\sqrt\s*{_GROUP}", r"sqrt(\1)", tex)
        tex = re.sub(rf"([\^_]){_GROUP}", lambda m: m[1] + _whole(m[2]), tex)
    tex = re.sub(r"\\([A-Za-z]+)", lambda m: _SYMBOLS.get(m[1], m[1]), tex)
    tex = re.sub(r"\\[,;:! ]|~", " ", tex)
    tex = re.sub(r"\\([{}|%_#&])", lambda m: {"{": "\0", "}": "\1", "|": "||"}.get(m[1], m[1]), tex)
    tex = tex.replace("{", "").replace("}", "").replace("\0", "{").replace("\1", "}").replace("\\", "")
    return re.sub(r"[ \t]+", " ", tex).strip()


def _whole(part: str) -> str:
    """Return a part of a formula in brackets, if it is more than a number or a name."""
    part = part.strip()
    return part if re.fullmatch(r"-?\\?[\w.]+", part) else f"({part})"
