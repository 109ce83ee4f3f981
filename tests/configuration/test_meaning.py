"""The option that is meant by one that does not exist."""

from __future__ import annotations

import pytest

from ppl_vae.configuration.config import parse
from ppl_vae.configuration.meaning import place

NAMES = [
    "prior.latent_dim",
    "likelihood.network.hidden",
    "posterior.network.hidden",
    "optimizer.lr",
    "epochs",
    "device",
]


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("latent_dim", "prior.latent_dim"),
        ("lr", "optimizer.lr"),
        ("likelihood.hidden", "likelihood.network.hidden"),
    ],
)
def test_the_only_name_that_ends_so_is_taken(option, meant):
    assert place({option: "?"}, NAMES, []) == {option: meant}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("hidden", "--hidden may mean --likelihood.network.hidden or --posterior.network.hidden; give the one"),
        ("gpu", "--gpu is unknown; did you mean --device cuda?"),
        ("learning_rate", "--learning_rate is unknown; did you mean --optimizer.lr?"),
        ("layers", "did you mean --likelihood.network.hidden or --posterior.network.hidden?"),
        ("latnt_dim", "did you mean --prior.latent_dim?"),
        ("prior.lr", "nothing is near"),  # of another piece: never taken for the optimiser's
        ("wholly_other", "nothing is near"),
    ],
)
def test_what_is_not_plain_is_proposed(option, message):
    with pytest.raises(ValueError) as caught:
        place({option: "nothing is near"}, NAMES, [])
    assert message in str(caught.value)


def test_the_same_option_twice_is_refused():
    with pytest.raises(ValueError, match=r"--lr means --optimizer\.lr, which is given as well"):
        place({"lr": "?"}, NAMES, ["optimizer.lr"])


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["--latent_dim", "3"], ("prior", "latent_dim"), 3),
        (["--prior", "VampPrior", "--latent_dim", "3"], ("prior", "latent_dim"), 3),  # one that has to be given
        (["--lr", "0.01"], ("optimizer", "lr"), 0.01),
        (["--likelihood.hidden", "[7]"], ("likelihood", "network", "hidden"), [7]),
        (["--optimizer", "SGD", "--momentum", "0.5"], ("optimizer", "momentum"), 0.5),
    ],
)
def test_a_configuration_takes_the_only_meaning(argv, path, value):
    config = parse([*argv, "--print_config"])
    found = config.values
    for part in path:
        found = found[part]
    assert found == value
    assert config.taken == {argv[-2][2:]: ".".join(path)}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--momentum 0.5", "--momentum is unknown here; it is an argument of"),
        ("--optimizer.momentum 0.5", "it is an argument of --optimizer RMSprop, --optimizer SGD"),
        (
            "--activation relu",
            "--activation may mean --likelihood.network.activation or --posterior.network.activation",
        ),
        ("--num 3", "did you mean --objective.num_particles?"),
        ("--name mine", "did you mean --out?"),  # never taken for the name of the data
        ("--latent_dim x", "--prior.latent_dim is 'x'; expected an integer"),
    ],
)
def test_a_configuration_says_what_may_be_meant(argv, message):
    with pytest.raises(ValueError) as caught:
        parse(argv.split())
    assert message in str(caught.value)


def test_an_import_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cannot be imported") as caught:
        parse(["--prior", "nowhere_at_all.Prior"])
    for part in (str(tmp_path), "sys.path", "nowhere_at_all.py", "PYTHONPATH"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"json comes from .*json.*did you mean JSONDecoder"):
        parse(["--prior", "json.JSONDecodr"])
