"""A VAE's objective trained by Lightning, with Lightning's precision, loggers and checkpoints.

    python examples/lightning_module.py --precision bf16-mixed

trains the digits for 20 epochs and prints the validation ELBO, about -25 nats per digit, after 15 seconds on one core.
Any objective of `ppl_vae.objectives` or of Pyro's that has a surrogate will do. Under ``bf16-mixed`` the ELBO that
Lightning logs carries rounding of some tenths of a nat: take figures from `ppl_vae.evaluate`, in float32, afterwards.
Needs ``pip install lightning``.
"""

import argparse

import lightning
import torch

import ppl_vae as pv


class LightningVAE(lightning.LightningModule):
    def __init__(self, vae, objective=None, lr=1e-3):
        super().__init__()
        self.vae, self.lr = vae, lr
        self.loss = pv.objectives.as_loss(objective or pv.objectives.ELBO())

    def training_step(self, batch, index, name="train"):
        found = self.loss((self.vae.model, self.vae.guide), *batch)  # sums over the batch
        self.log(f"{name}_elbo", (found.log_likelihood - found.kl) / found.weight, batch_size=len(batch[0]))
        return found.surrogate / found.weight  # differentiated, not a figure

    def validation_step(self, batch, index):
        self.training_step(batch, index, "validation")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def main(epochs=20, precision="32-true", **trainer):
    digits = pv.data.load("digits", binarize="threshold")
    vae = pv.VAE(
        digits,
        prior=pv.priors.StandardNormal(2),
        likelihood=pv.likelihoods.Bernoulli(pv.networks.MLP([64])),
        posterior=pv.posteriors.DiagonalNormal(pv.networks.MLP([64])),
    )
    module = LightningVAE(vae)
    train, validation = (
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(split.x), 128, shuffle=split is digits.train)
        for split in (digits.train, digits.validation)
    )
    lightning.Trainer(max_epochs=epochs, precision=precision, **trainer).fit(module, train, validation)
    return module, digits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="32-true", help="Lightning's, for instance bf16-mixed")
    module, digits = main(precision=parser.parse_args().precision)
    print("validation ELBO", float(module.trainer.callback_metrics["validation_elbo"]), "nats per digit")
