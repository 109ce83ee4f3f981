"""pythae's own VAE and trainer around the same networks.

Its posterior is given by a log variance, its KL is in closed form and its Bernoulli by a probability: there is no
choice. It has one particle.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor

from contenders import Run
from contenders._torch import mlp
from contenders.setting import PIXELS, Setting


def trainer(setting: Setting) -> Run:
    """`BaseTrainer.train_step`, which goes through its DataLoader once, ended after so many batches."""
    if setting.num_particles > 1:
        raise ValueError("pythae's VAE has one particle")
    sizes = VAEConfig(input_dim=(PIXELS,), latent_dim=setting.latent, reconstruction_loss="bce")
    model = VAE(sizes, encoder=_Encoder(setting), decoder=_Decoder(setting))
    folder = tempfile.TemporaryDirectory()  # removed when `run` goes
    pixels = torch.from_numpy(setting.pixels())
    config = BaseTrainerConfig(
        output_dir=folder.name,
        learning_rate=1e-3,
        per_device_train_batch_size=setting.batch_size,
        no_cuda=setting.device == "cpu",
    )
    trainer = BaseTrainer(model, BaseDataset(pixels, torch.zeros(len(pixels))), training_config=config)
    trainer.prepare_training()
    loader = trainer.train_loader

    def run(steps: int, folder: object = folder) -> int:
        left = steps
        while left:
            trainer.train_loader = _Some(loader, min(left, len(loader)))
            trainer.train_step(epoch=1)  # reads every loss, so that the device has finished
            left -= len(trainer.train_loader)
        return steps

    return run


class _Some:
    """The first so many batches of a loader."""

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count, self.dataset = loader, count, loader.dataset

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.loader, self.count)


class _Encoder(BaseEncoder):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.network = mlp(setting.encoder_sizes)

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_variance = self.network(x).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class _Decoder(BaseDecoder):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.network = mlp(setting.decoder_sizes)

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.network(z).sigmoid())
