"""What the tests of reports share."""

from __future__ import annotations

from ppl_vae import cli

HOSTILE = "</script><script>alert(1)</script>\"'&@values@"
SHORT = ["--epochs", "3", "--compile", "off"]
SMALL = [*SHORT, "--likelihood.network.hidden", "[16]", "--posterior.network.hidden", "[16]"]


def main(*argv: str) -> None:
    """Run a command line in this process, and expect it to end well."""
    assert cli.main(list(argv)) == 0
