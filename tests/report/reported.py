"""What the tests of reports share."""

from __future__ import annotations

from ppl_vae import cli

HOSTILE = "</script><script>alert(1)</script>\"'&@values@"
SHORT = ["--epochs", "3", "--compile", "off"]
SMALL = [*SHORT, "--likelihood.network.hidden", "[16]", "--posterior.network.hidden", "[16]"]

CONVOLUTIONAL = ["--likelihood.network", "Convolutional"]
CONVOLUTIONAL += ["--likelihood.network.channels", "[4]", "--likelihood.network.hidden", "[8]"]
RACE = ["--objectives", "[ELBO, IWAE]", "--particles", "4", "--seeds", "2"]
RACE += ["--evaluation_size", "8", "--evidence", "posterior", "--evidence_particles", "10"]


def main(*argv: str) -> None:
    """Run a command line in this process, and expect it to end well."""
    assert cli.main(list(argv)) == 0
