"""`check`: silent on every piece of the zoo, and one finding, with its line, for each foreign piece with one fault."""

from __future__ import annotations

import copy
import inspect
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import zoo
from short_runs import small_vae, without_pictures
from torch import Tensor, nn
from torch.distributions import constraints

import ppl_vae
from ppl_vae import SVI, cli, data, likelihoods, networks, objectives, posteriors, priors
from ppl_vae.capture import modules_of
from ppl_vae.checking.asking import Unanswered
from ppl_vae.checking.axes import find_axis
from ppl_vae.checking.density import Density
from ppl_vae.checking.normalisation import Mass, total_mass
from ppl_vae.checking.sampling import Deviation, deviation
from ppl_vae.distributions.grid import Grid
from ppl_vae.distributions.relaxed import RelaxedOneHotVector

PIXELS = 12
REAL_VECTOR = constraints.independent(constraints.real, 1)


# Right pieces: nothing is wrong


def report_on(program: zoo.Program, only: str | None = None):
    vae = program.vae((1, 2, 3), max(2, program.min_latent))
    x = program.likelihood.draw(64, 1, 2, 3)
    return ppl_vae.check(vae, x, only=only)


def of_role(role: str) -> list[zoo.Program]:
    found = {getattr(program, role).name: program for program in zoo.programs()}
    return list(found.values())


QUICK = {  # one of each kind of space and rule
    "MixturePrior-5",
    "HypersphericalUniform",
    "RelaxedBernoulliVector",
    "RelaxedOneHotCategorical",
    "Bernoulli-grey",
    "Normal-datum",
    "Beta",
    "Poisson",
    "DiscretizedLogistic-4",
    "Mixed-binary",
    "FullCovarianceNormal",
    "SquashedNormal",
    "InverseFlow",
    "VonMisesFisher",
    "OneHotCategorical",
    "TwoLevel",
}


def every_piece():
    """A parameter for each entry; most are slow."""
    for role in ("prior", "likelihood", "posterior"):
        for program in of_role(role):
            name = getattr(program, role).name
            yield pytest.param(role, program, id=f"{role}-{name}", marks=[] if name in QUICK else [pytest.mark.slow])


@pytest.mark.parametrize(("role", "program"), list(every_piece()))
def test_no_alarm_on_any_piece(role, program):
    report = report_on(program, only=role)
    if role == "likelihood" and not program.likelihood.is_density:
        assert [(f.part, f.name) for f in report.wrong] == [("likelihood", "support")]
        return
    assert report, str(report)


@pytest.mark.ci
def test_no_alarm_on_a_program():
    report = report_on(zoo.Program())
    assert report, str(report)
    assert {f.status for f in report} == {"ok"}
    assert {f.name for f in report if f.part == "program"} == {"terms", "gradients", "bound", "capture"}
    assert "captured as one graph" in str(report)


@pytest.mark.slow
@pytest.mark.parametrize("program", zoo.programs(), ids=zoo.names)
def test_no_alarm_on_any_program(program):
    report = report_on(program)
    assert bool(report) == program.likelihood.is_density, str(report)


# Foreign pieces; they inherit nothing


class Prior:
    def __call__(self):
        return dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)


class Likelihood(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, PIXELS)

    def forward(self, z):
        return dist.Bernoulli(logits=self.net(z)).to_event(1)


class Posterior(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(PIXELS, 4)

    def forward(self, x):
        mean, log_var = self.net(x).chunk(2, -1)
        return dist.Normal(mean, (0.5 * log_var).exp()).to_event(1)


class Foreign(dist.TorchDistribution):
    """A distribution of one's own over vectors."""

    arg_constraints = {}  # noqa: RUF012
    support = REAL_VECTOR

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        new = type(self).__new__(type(self))
        vars(new).update(vars(self))
        new.loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def noise(self, sample_shape):
        return torch.randn(torch.Size(sample_shape) + self.loc.shape, dtype=self.loc.dtype)


class SquaredError(Foreign):
    def log_prob(self, x):
        return -((x - self.loc) ** 2).sum(-1)  # HERE

    def sample(self, sample_shape=()):
        return self.loc + math.sqrt(0.5) * self.noise(sample_shape)


class Heap(Foreign):
    def log_prob(self, z):
        parts = [dist.Normal(self.loc + m, 0.5).log_prob(z).sum(-1) for m in (-1.0, 1.0)]
        return torch.stack(parts).logsumexp(0)  # HERE

    def sample(self, sample_shape=()):
        noise = self.noise(sample_shape)
        return self.loc + 2.0 * torch.randint(2, noise.shape[:-1])[..., None] - 1 + 0.5 * noise


class ArticleNormal(Foreign):
    has_rsample = True

    def __init__(self, loc, log_var):
        super().__init__(loc)
        self.log_var = log_var

    def rsample(self, sample_shape=()):
        return self.loc + self.log_var.exp() * 0.5 * self.noise(sample_shape)  # HERE

    def log_prob(self, z):
        return dist.Normal(self.loc, (0.5 * self.log_var).exp()).log_prob(z).sum(-1)


class NarrowRsample(dist.Normal):
    """The article's fault in rsample alone: `sample` is inherited, and right."""

    def rsample(self, sample_shape=()):
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype)
        return self.loc + self.scale.square() * 0.5 * noise

    def expand(self, batch_shape, _instance=None):
        return NarrowRsample(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class LogOfSigmoid(Foreign):
    support = constraints.independent(constraints.boolean, 1)

    def log_prob(self, x):
        p = self.loc.sigmoid()
        return (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)  # HERE

    def sample(self, sample_shape=()):
        return torch.bernoulli(self.loc.sigmoid().expand(torch.Size(sample_shape) + self.loc.shape))


class Unnormalised(Likelihood):
    def forward(self, z):
        return SquaredError(self.net(z))


class UnnormalisedPrior:
    def __call__(self):
        return Heap(torch.zeros(2))


class NoEvent(Likelihood):
    def forward(self, z):
        return dist.Bernoulli(logits=self.net(z))  # HERE


class Article(Posterior):
    def forward(self, x):
        mean, log_var = self.net(x).chunk(2, -1)
        return ArticleNormal(mean, log_var)


class Saturating(Likelihood):
    def forward(self, z):
        return LogOfSigmoid(self.net(z))


class Unused(Likelihood):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(PIXELS))  # HERE


class BlindToLatents(Likelihood):
    def forward(self, z):
        z = z.detach()  # HERE
        return super().forward(z)


class Cut(Posterior):
    def forward(self, x):
        mean, log_var = self.net(x).detach().chunk(2, -1)  # HERE
        return dist.Normal(mean, (0.5 * log_var).exp()).to_event(1)


class OverBatch(Likelihood):
    def forward(self, z):
        logits = self.net(z)
        return dist.Bernoulli(logits=logits - logits.mean(0)).to_event(1)  # HERE


class Box:
    def __call__(self):
        return dist.Uniform(torch.zeros(2), torch.ones(2)).to_event(1)


class Single(Likelihood):
    def forward(self, z):
        return dist.Normal(self.net(z).float(), 1.0).to_event(1)  # HERE


class Misfit(Likelihood):
    def forward(self, z):
        return dist.Bernoulli(logits=self.net(z) @ torch.ones(3, 3)).to_event(1)  # HERE


class Outside(Foreign):
    support = constraints.independent(constraints.positive, 1)

    def log_prob(self, z):
        return dist.Normal(self.loc, 1.0).log_prob(z).sum(-1)

    def sample(self, sample_shape=()):
        return self.loc + self.noise(sample_shape)  # HERE


class WrongSupport(Likelihood):
    def forward(self, z):
        return Outside(self.net(z))


WRONG = [
    ({"likelihood": Unnormalised}, "likelihood", "normalised", SquaredError),
    ({"prior": UnnormalisedPrior}, "prior", "normalised", Heap),
    ({"likelihood": NoEvent}, "likelihood", "shapes", NoEvent),
    ({"posterior": Article}, "posterior", "sampling", ArticleNormal),
    ({"likelihood": Saturating}, "likelihood", "finite", LogOfSigmoid),
    ({"likelihood": Unused}, "likelihood", "gradients", Unused),
    ({"likelihood": BlindToLatents}, "likelihood", "uses z", BlindToLatents),
    ({"posterior": Cut}, "posterior", "gradients", Cut),
    ({"likelihood": OverBatch}, "likelihood", "batches", OverBatch),
    ({"prior": Box}, "posterior", "space", None),
    ({"likelihood": Single}, "likelihood", "float64", Single),
    ({"likelihood": Misfit}, "likelihood", "runs", Misfit),
]


def line_of(cls: type) -> str:
    lines, first = inspect.getsourcelines(cls)
    number = first + next(i for i, line in enumerate(lines) if "# HERE" in line)
    return f"test_check.py:{number}, {cls.__name__}."


def bits(*shape: int) -> Tensor:
    return (torch.rand(*shape) < 0.3).float()


def check_with(changed=None, **options):
    pieces = {"prior": Prior, "likelihood": Likelihood, "posterior": Posterior} | (changed or {})
    return ppl_vae.check(data=bits(64, PIXELS), **{role: make() for role, make in pieces.items()}, **options)


@pytest.mark.ci
def test_foreign_pieces_that_are_right():
    assert check_with(), str(check_with())


@pytest.mark.parametrize(("changed", "part", "name", "cls"), WRONG, ids=[w[2] + "-" + w[1] for w in WRONG])
def test_one_fault_is_one_finding_with_its_line(changed, part, name, cls):
    report = check_with(changed)
    assert [(f.part, f.name) for f in report.wrong] == [(part, name)], str(report)
    (finding,) = report.wrong
    assert not report
    assert finding.sentence
    if cls is not None:
        assert line_of(cls) in finding.place, finding.place


def test_the_article_bug_says_which_way_and_how_to_mend_it():
    (finding,) = check_with({"posterior": Article}).wrong
    assert "narrower than log_prob says" in finding.sentence
    assert "exp(0.5 * log_var)" in finding.fix


def test_the_missing_constant_is_measured():
    (finding,) = check_with({"likelihood": Unnormalised}).wrong
    missing = 0.5 * PIXELS * math.log(math.pi)  # a factor sqrt(pi) for each number
    assert f"{missing:.4g}" in finding.sentence


def test_draws_outside_of_the_stated_support():
    report = ppl_vae.check(likelihood=WrongSupport(), data=torch.rand(64, PIXELS), z=torch.randn(64, 2))
    assert [f.name for f in report.wrong] == ["draws"]
    assert line_of(Outside) in report.wrong[0].place


def test_grey_data_under_a_bernoulli():
    report = ppl_vae.check(data=torch.rand(64, PIXELS), prior=Prior(), likelihood=Likelihood(), posterior=Posterior())
    assert [(f.part, f.name) for f in report.wrong] == [("likelihood", "support")], str(report)
    assert "binarise" in report.wrong[0].fix


# Programs


def pair(scale: float = 1.0):
    likelihood, posterior = Likelihood(), Posterior()

    def model(x):
        pyro.module("pair_likelihood", likelihood)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        pyro.module("pair_posterior", posterior)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample(
                "z", posterior(x) if scale == 1 else ArticleNormal(posterior.net(x)[..., :2], posterior.net(x)[..., 2:])
            )

    return model, guide


def test_a_model_and_a_guide():
    report = ppl_vae.check(pair(), bits(64, PIXELS))
    assert report, str(report)
    assert {f.part for f in report} == {"p(z)", "p(x)", "q(z)", "objective", "program"}


def test_a_model_and_a_guide_with_a_fault():
    report = ppl_vae.check(pair(0.5), bits(64, PIXELS))
    assert [(f.part, f.name) for f in report.wrong] == [("q(z)", "sampling")], str(report)
    assert line_of(ArticleNormal) in report.wrong[0].place


def normal_pair(kind: str = "right", last=None, first=None):
    """A normal model and guide of 4 numbers, with a fault."""
    last = nn.Linear(2, 4) if last is None else last
    first = nn.Linear(4, 4) if first is None else first
    size = 8 if kind == "subsample" else None

    def model(x):
        pyro.module("last", last)
        with pyro.plate("data", len(x), subsample_size=size, dim=-1) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(len(rows), 2), 1.0).to_event(1))
            mean = last(z.detach() if kind == "cut" else z)
            mean = mean - mean.mean(0) if kind == "batch" else mean
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x[rows])

    def guide(x):
        pyro.module("first", first)
        with pyro.plate("data", len(x), subsample_size=size, dim=-1) as rows:
            mean, scale = first(x[rows]).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))

    return model, guide


@pytest.mark.parametrize(("kind", "part", "name"), [("cut", "program", "uses z"), ("batch", "p(x)", "batches")])
def test_a_fault_that_shows_with_other_latents_or_data(kind, part, name):
    report = ppl_vae.check(normal_pair(kind), torch.randn(64, 4))
    assert [(f.part, f.name) for f in report.wrong] == [(part, name)], str(report)


def test_every_question_about_a_pair_has_an_answer_or_a_reason():
    report = ppl_vae.check(normal_pair(), torch.randn(64, 4))
    assert {f.name for f in report if f.status == "ok"} >= {"uses z", "finite", "batches", "gradients", "bound"}
    assert {f.name for f in report if f.status == "not checked"} == {"float64", "capture"}


def test_a_layer_that_starts_at_zero_hides_nothing_and_a_pair_stays_as_it_was():
    last = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4))
    nn.init.zeros_(last[2].weight)
    first = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in first.state_dict().items()}
    report = ppl_vae.check(normal_pair(last=last, first=first), 3 * torch.randn(64, 4))
    assert report, str(report)
    alone = Likelihood()
    nn.init.zeros_(alone.net.weight)
    assert ppl_vae.check(likelihood=alone, z=torch.randn(32, 2))
    assert all(p.grad is None for p in (*last.parameters(), *first.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    assert first.training


def test_a_plate_that_subsamples_is_said_to_be_unchecked():
    report = ppl_vae.check(normal_pair("subsample"), torch.randn(64, 4))
    assert report
    assert "without subsample_size" in str(report)


def test_a_mask_and_a_program_without_particles_are_said_to_be_unchecked():
    report = ppl_vae.check(prior=lambda: dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))
    assert {f.name for f in report if f.status == "not checked"} >= {"sampling", "normalised"}

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            assert z.dim() == 2
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    report = ppl_vae.check(
        (model, normal_pair(first=nn.Linear(4, 8))[1]), torch.randn(64, 4), objective=objectives.ELBO(1)
    )
    assert report, str(report)
    assert {f.name for f in report if f.status == "not checked"} >= {"terms", "bound"}


def test_data_of_zeros_alone_hide_the_first_weights():
    report = ppl_vae.check(pair(), torch.zeros(64, PIXELS))
    assert report, str(report)
    assert "all zero here" in str(report)


class TooHigh:
    """An objective that calls itself a lower bound, and forgets the KL."""

    num_particles = 1

    def __call__(self, log_weights):
        value = log_weights.log_lik.mean(0) + 100
        return objectives.Estimate(value.detach(), value, "lower")


def test_an_objective_that_is_no_bound():
    report = check_with(objective=TooHigh())
    wrong = [(f.part, f.name) for f in report.wrong]
    assert ("objective", "bound") in wrong
    assert wrong == [("objective", "bound")], str(report)


class Score(Foreign):
    has_rsample = False

    def log_prob(self, z):
        return dist.Normal(self.loc, 1.0).log_prob(z).sum(-1)

    def sample(self, sample_shape=()):
        return (self.loc + self.noise(sample_shape)).detach()


class NotReparameterised(Posterior):
    def forward(self, x):
        return Score(self.net(x)[..., :2] + 0 * self.net(x)[..., 2:])


def test_an_objective_that_needs_reparameterised_latents():
    report = check_with({"posterior": NotReparameterised}, objective=objectives.ELBO())
    assert [(f.part, f.name) for f in report.wrong] == [("objective", "reparameterised")], str(report)
    assert "REINFORCE" in report.wrong[0].fix


def test_nothing_is_moved():
    vae = zoo.Program().vae()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.train()
    x = zoo.BINARY.draw(32, 1, 2, 3)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    ppl_vae.check(vae, x)
    assert torch.equal(torch.rand(1), expected)
    assert vae.training
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert not list(pyro.get_param_store().keys())


# Pieces alone


def test_pieces_alone():
    assert ppl_vae.check(prior=priors.StandardNormal(3))
    assert ppl_vae.check(likelihood=likelihoods.Bernoulli(networks.MLP([8])), data=bits(32, 10))
    assert ppl_vae.check(posterior=posteriors.DiagonalNormal(networks.MLP([8])), data=bits(32, 10))
    assert ppl_vae.check(likelihood=Likelihood(), z=torch.randn(32, 2))
    assert {f.part for f in ppl_vae.check(prior=Prior(), likelihood=Likelihood(), only="prior")} == {"prior"}


def test_whole_numbers_are_data_where_fit_takes_them():
    counts, mlp = torch.randint(5, (32, 4)), networks.MLP([8])
    assert ppl_vae.check(posterior=posteriors.DiagonalNormal(mlp), data=counts)
    vae = small_vae((4,), likelihood=likelihoods.Poisson)
    assert ppl_vae.check(vae, counts, only="posterior")


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(TypeError, match="no program"):
        ppl_vae.check()
    with pytest.raises(ValueError, match="no data"):
        ppl_vae.check(posterior=Posterior())
    with pytest.raises(ValueError, match="only"):
        check_with(only="decoder")
    with pytest.raises(ValueError, match="only='posterior' and no posterior"):
        ppl_vae.check(prior=Prior(), only="posterior")
    with pytest.raises(ValueError, match="a model and a guide, which have sites"):
        ppl_vae.check(pair(), bits(64, PIXELS), only="posterior")
    with pytest.raises(ValueError, match="no data"):
        ppl_vae.check(zoo.Program().vae())


# Conditions, tables


LABELS = torch.arange(64) % 4


class OfLabel(nn.Module):
    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.zeros(4, 2))

    def forward(self, y):
        return dist.Normal(y @ self.means, 1.0).to_event(1)


def test_a_conditional_program_with_labels():
    vae = ppl_vae.VAE(
        (6,),
        prior=OfLabel(),
        likelihood=likelihoods.Bernoulli(networks.MLP([5])),
        posterior=lambda x: dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1),
        y_shape=(4,),
    )
    report = ppl_vae.check(vae, bits(64, 6), y=LABELS)
    assert report, str(report)
    assert "p(z) has batch (64,)" in str(report)
    assert {f.name for f in report if f.part == "program" and f.status == "ok"} == {
        "terms",
        "gradients",
        "bound",
        "capture",
    }


def test_pieces_alone_are_given_the_condition_if_they_take_it():
    assert ppl_vae.check(prior=OfLabel(), y=LABELS)
    assert ppl_vae.check(likelihood=lambda z, y: dist.Normal(z + y[:, :2], 1.0).to_event(1), y=LABELS[:10])
    assert ppl_vae.check(likelihood=Likelihood(), data=bits(64, PIXELS), y=LABELS)
    assert ppl_vae.check(posterior=posteriors.DiagonalNormal(networks.MLP([5])), data=bits(64, 6), y=LABELS)


def test_data_of_another_program_are_refused():
    vae = zoo.Program().vae()
    x = zoo.BINARY.draw(8, 1, 2, 3)
    with pytest.raises(ValueError, match=r"shape \(7,\) and a VAE for data of shape \(1, 2, 3\)"):
        ppl_vae.check(vae, torch.zeros(8, 7))
    with pytest.raises(ValueError, match="put together without"):
        ppl_vae.check(vae, x, y=LABELS[:8])
    with pytest.raises(ValueError, match="8 data and 64 conditions"):
        ppl_vae.check(vae, x, y=LABELS)
    pieces = {"prior": OfLabel(), "likelihood": Likelihood(), "posterior": Posterior()}
    conditional = ppl_vae.VAE((PIXELS,), **pieces, y_shape=(4,))
    with pytest.raises(ValueError, match="no condition and a conditional VAE"):
        ppl_vae.check(conditional, bits(8, PIXELS))


COLUMNS = ["real", "positive", "count", "binary", "categorical:3"]


def table():
    columns = [1000 * torch.randn(90), torch.rand(90).exp(), torch.poisson(torch.full((90,), 3.0))]
    rows = torch.stack([*columns, bits(90), torch.arange(90) % 3.0], -1)
    return data.from_table(torch.where(torch.rand(90, 5) < 0.2, torch.nan, rows), COLUMNS)


def check_table(**changed):
    pieces = {
        "prior": priors.StandardNormal(2),
        "likelihood": likelihoods.Mixed(COLUMNS, networks.MLP([5]), scale="network"),
        "posterior": posteriors.DiagonalNormal(networks.TableEncoder(COLUMNS, networks.MLP([5]))),
    }
    return ppl_vae.check(data=table(), **pieces | changed)


@pytest.mark.ci
def test_a_table_with_missing_values():
    report = check_table()
    assert report, str(report)
    assert {f.status for f in report} == {"ok"}, str(report)  # its columns move one by one: mass and draws are told
    plain = check_table(likelihood=likelihoods.Normal(networks.MLP([5])))
    assert [(f.part, f.name) for f in plain.wrong] == [("likelihood", "support")], str(plain)
    assert "Mixed" in plain.wrong[0].fix
    blind = check_table(posterior=posteriors.DiagonalNormal(networks.MLP([5])))
    assert [(f.part, f.name) for f in blind.wrong] == [("posterior", "runs")], str(blind)
    assert "TableEncoder" in blind.wrong[0].fix


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("classes", [2, 5])
def test_a_relaxed_vector_of_low_temperature_is_not_called_wrong(seed, classes):
    """Its censored entries have a probability at one value, which no line through them shows."""
    torch.manual_seed(seed)
    q = RelaxedOneHotVector(torch.randn(4, 1, classes), torch.tensor(0.02))
    density = Density(q, 1000)
    for question in (deviation, total_mass) if classes == 2 else (deviation,):
        with pytest.raises(Unanswered, match="share the smallest value"):
            question(density)
    smooth = deviation(Density(RelaxedOneHotVector(torch.randn(4, 1, classes), torch.tensor(0.2)), 1000))
    assert smooth.agrees, smooth


def test_a_flow_that_scores_its_own_draws_alone_says_what_is_not_checked():
    report = report_on(zoo.Program(posterior=next(p for p in zoo.POSTERIORS if not p.rescores)), only="posterior")
    skipped = {f.name: f.sentence for f in report if f.status == "not checked"}
    assert report
    assert skipped.keys() == {"draws", "sampling", "normalised", "batches"}
    assert "no inverse" in skipped["draws"]


# The instruments, against distributions whose mass and draws are known


KNOWN = [
    dist.Normal(torch.randn(2, 5), 0.3).to_event(1),
    dist.StudentT(2.5, torch.zeros(2, 3), 2.0).to_event(1),
    dist.Gamma(0.7 * torch.ones(1, 3), 2.0).to_event(1),
    dist.Beta(0.5 * torch.ones(1, 3), 3.0).to_event(1),
    dist.Uniform(-torch.ones(1, 3), 2.0).to_event(1),
    dist.Poisson(torch.full((1, 3), 7.0)).to_event(1),
    dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.95], [0.95, 1.0]])),
    dist.MultivariateNormal(torch.zeros(12), torch.eye(12) + 0.5),
    dist.OneHotCategorical(torch.tensor([[0.1, 0.2, 0.7]])),
    dist.Categorical(torch.tensor([0.1, 0.2, 0.7])).expand([1, 2]).to_event(1),  # whose draws are integers by type
]


@pytest.mark.parametrize("known", KNOWN, ids=lambda d: type(getattr(d, "base_dist", d)).__name__)
def test_known_densities_have_mass_one_and_their_draws_follow(known):
    density = Density(known, 4000)
    mass, found = total_mass(density), deviation(density)
    assert isinstance(mass, Mass), mass
    assert abs(mass.log_mass) < 2e-2
    assert mass.is_one
    assert isinstance(found, Deviation), found
    assert found.agrees, found


def mixture(far: float, scale: float) -> dist.Distribution:
    parts = dist.Normal(torch.tensor([0.0, far]), torch.tensor([1.0, scale]))
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.8, 0.2])), parts).expand([1]).to_event(1)


NARROW = [
    dist.LogNormal(torch.zeros(1, 2), 1e-3).to_event(1),
    dist.Beta(torch.full((1, 2), 1e6, dtype=torch.float64), 1e6).to_event(1),
    dist.Gamma(torch.full((1, 2), 0.03, dtype=torch.float64), 1.0).to_event(1),
    dist.Beta(torch.tensor([[0.03, 1.0]], dtype=torch.float64), 1.0).to_event(1),
    mixture(50.0, 0.3),
    mixture(0.3, 1e-3),
]


@pytest.mark.parametrize("known", NARROW, ids=lambda d: type(getattr(d, "base_dist", d)).__name__)
def test_narrow_densities_those_beside_an_end_and_those_in_two_parts_are_integrated(known):
    density = Density(known, 4000)
    assert total_mass(density).is_one
    assert deviation(density).agrees


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (mixture(20.0, 1e-3), "too narrow or too far apart"),
        (dist.Beta(torch.full((1, 2), 0.03), 0.03).to_event(1), "nearer to an end than numbers reach"),
        (dist.Multinomial(9, torch.full((1, 3), 0.3)), "does not list"),
    ],
)
def test_what_cannot_be_resolved_is_not_called_wrong(known, why):
    density = Density(known, 4000)
    for question in (total_mass, deviation):
        with pytest.raises(Unanswered, match=why):
            question(density)


class Scaled(dist.MultivariateNormal):
    """Draws by a factor too wide, and a density by a constant too high."""

    factor, excess = 1.0, 0.0

    def rsample(self, sample_shape=()):
        return self.loc + self.factor * (super().rsample(torch.Size(sample_shape)) - self.loc)

    def log_prob(self, value):
        return super().log_prob(value) + self.excess


@pytest.mark.parametrize("dim", [2, 12])
def test_coupled_coordinates_show_both_faults(dim):
    right = Scaled(torch.zeros(dim), torch.eye(dim) + 0.5)
    wide, high = Scaled(torch.zeros(dim), torch.eye(dim) + 0.5), Scaled(torch.zeros(dim), torch.eye(dim) + 0.5)
    wide.factor, high.excess = 1.6, 0.4
    assert deviation(Density(right, 4000)).agrees
    assert not deviation(Density(wide, 4000)).agrees
    assert deviation(Density(high, 4000)).agrees
    mass = total_mass(Density(high, 4000))
    assert mass.log_mass == pytest.approx(0.4, abs=0.1)
    assert not mass.is_one


@pytest.mark.ci
@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_coordinates_that_determine_each_other_nearly(factor):
    """A line along one of them is 1e-5 as wide as all draws side by side."""
    tril = torch.eye(20, dtype=torch.float64) * 1e-5 + torch.ones(20, 20, dtype=torch.float64).tril()
    known = Scaled(torch.zeros(20, dtype=torch.float64), scale_tril=tril @ tril)
    known.factor = factor
    found = deviation(Density(known, 4000))
    assert found.agrees == (factor == 1), found


def test_axes():
    def of(constraint, values):
        return find_axis(lambda v: constraint.check(v), torch.tensor(values, dtype=torch.float64))

    assert of(constraints.real, [0.3, -2.0]).low == -math.inf
    box = of(constraints.interval(-1.0, 2.0), [0.3, 1.0])
    assert (box.low, box.high, box.edges) == (-1.0, 2.0, (-1.0, 2.0))
    half = of(constraints.positive, [0.3, 5.0])
    assert (half.low, half.high, half.edges) == (0.0, math.inf, ())
    assert of(constraints.boolean, [0.0, 1.0]).states.tolist() == [0.0, 1.0]
    assert of(constraints.integer_interval(2, 5), [3.0, 4.0]).states.tolist() == [2.0, 3.0, 4.0, 5.0]
    # values that several lists hold: the support decides
    assert len(of(Grid(256), [0.0, 1.0]).states) == 256
    assert of(constraints.integer_interval(0, 3), [0.0, 1.0]).states.tolist() == [0.0, 1.0, 2.0, 3.0]


# The command


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


SMALL = ["--likelihood.network.hidden", "[8]", "--posterior.network.hidden", "[8]"]

MODULE = """
import pyro.distributions as dist
import torch


class HalfPrior:
    def __call__(self):
        return dist.Normal(torch.zeros(2), 1.0)


class Right:
    def __call__(self):
        return dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
"""


def test_the_command(workplace, capsys):
    assert cli.main(["check", *SMALL, "--only", "prior"]) == 0
    out = capsys.readouterr().out
    assert "0 not checked" in out.splitlines()[0]
    assert "digits" in out.splitlines()[0]
    (workplace / "half_prior.py").write_text(MODULE)
    assert cli.main(["check", *SMALL, "--prior", "half_prior.HalfPrior"]) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "half_prior.py:8, HalfPrior.__call__: return dist.Normal" in " ".join(out.split())
    assert cli.main(["check", *SMALL, "--prior", "half_prior.Right", "--only", "prior"]) == 0


@pytest.mark.ci
@pytest.mark.parametrize("conditional", [pytest.param("false", marks=pytest.mark.slow), "true"])
def test_a_run(conditional, workplace, capsys):
    words = ["--data.conditional", conditional, "--epochs", "1", "--out", "run"]
    with without_pictures():
        assert cli.main(["train", *SMALL, *words]) == 0
    capsys.readouterr()
    assert cli.main(["check", "run", "--only", "posterior"]) == 0
    assert "0 not checked" in capsys.readouterr().out.splitlines()[0]
    assert cli.main(["check", "run", "--prior", "StandardNormal"]) == 2
    assert "--prior cannot be given for a run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("conditional", ["false", "true"])
def test_the_whole_command(conditional, workplace, capsys):
    assert cli.main(["check", *SMALL, "--data.conditional", conditional]) == 0
    assert "27 right, 0 not checked" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("check --prior Standard", "--prior"),
        ("check --only decoder", "only"),
        ("check nowhere", "nowhere"),
        ("check --out there", "--out"),
        ("check a b", "one at most"),
    ],
)
def test_bad_input_is_one_line(words, said, capsys, workplace):
    assert cli.main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ppl-vae: error: ")
    assert said in line


def test_help(capsys):
    assert cli.main(["check", "--help"]) == 0
    assert "--only" in capsys.readouterr().out


def test_a_fault_in_rsample_alone_is_found():
    class Posterior(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(64, 4)

        def forward(self, x):
            mean, log_var = self.net(x.flatten(1)).chunk(2, -1)
            return NarrowRsample(mean, (0.5 * log_var).exp()).to_event(1)

    report = ppl_vae.check(posterior=Posterior(), data=(torch.rand(64, 1, 8, 8) < 0.3).float(), only="posterior")
    assert [finding.name for finding in report.wrong] == ["sampling"]


def test_an_objective_may_train_a_part_of_the_program():
    vae = small_vae((3,))
    vae.posterior.temper = nn.Parameter(torch.tensor(0.5))

    class Tempered:
        def __init__(self, posterior: nn.Module) -> None:
            self.posterior = posterior

        def __call__(self, weights: objectives.LogWeights) -> Tensor:
            return weights.log_w.mean(0) - self.posterior.temper.square()

    report = ppl_vae.check(vae, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]), objective=Tempered(vae.posterior))
    assert "temper" not in str(report), str(report)


@pytest.mark.ci
@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", ["DisARM", "DoubleCV", "REBAR", "RELAX", "NVIL"])
def test_objectives_with_draws_and_state_of_their_own_are_right(name: str):
    """Each step as captured starts from the same state; what starts at zero is moved; the bound takes their draws."""
    vae = ppl_vae.VAE(
        (3,),
        prior=priors.BernoulliVector(3),
        likelihood=likelihoods.Bernoulli(networks.MLP([5], "tanh")),
        posterior=posteriors.BernoulliVector(networks.MLP([5], "tanh")),
    )
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    objective = getattr(objectives, name)()
    SVI(vae.model, vae.guide, torch.optim.Adam, objective, compile="off").backward(x)  # networks that know their sizes
    before = [copy.deepcopy(module.state_dict()) for module in modules_of(objective)]
    report = ppl_vae.check(vae, x, objective=objective)
    assert "WRONG" not in str(report), str(report)
    for module, state in zip(modules_of(objective), before, strict=True):  # the users go on with theirs
        torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0)
