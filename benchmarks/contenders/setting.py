"""What all contenders are given alike: the sizes, and the data."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIXELS = 784


@dataclass(frozen=True)
class Setting:
    """One training step to be timed.

    Attributes:
        hidden: Widths of the encoder's hidden layers; reversed in the decoder.
        batch_size: Data a step.
        num_particles: K, draws of z per datum.
        rows: Data in all, in batches of 128 a whole number of them.
        data: ``"random"`` bits, or ``"MNIST"``: its first rows, 1 where a pixel is above one half.
        device: ``"cpu"`` or ``"cuda"``, where the data are too.
        latent: Latent dimensions.
        matmul_precision: How float32 products round, in torch's words: ``"highest"`` or ``"high"`` (TF32).
        program: A program of examples/gallery, which has sizes and data of its own.
    """

    hidden: tuple[int, ...] = (500, 300, 150)
    batch_size: int = 128
    num_particles: int = 1
    rows: int = 20_480
    data: str = "random"
    device: str = "cpu"
    latent: int = 2
    matmul_precision: str = "highest"
    program: str | None = None

    @property
    def encoder_sizes(self) -> tuple[int, ...]:
        """Widths of the encoder, input and output (a mean and a scale for each latent dimension) included."""
        return (PIXELS, *self.hidden, 2 * self.latent)

    @property
    def decoder_sizes(self) -> tuple[int, ...]:
        """Widths of the decoder, input and output included."""
        return (self.latent, *self.hidden[::-1], PIXELS)

    def pixels(self) -> Any:
        """The data as a NumPy array of zeros and ones, shape (rows, 784), float32: the same for every contender.

        Raises:
            ValueError: If MNIST is asked for and not found, or has fewer rows.
        """
        import numpy as np

        if self.data == "random":
            packed = np.random.default_rng(0).integers(0, 256, (self.rows, PIXELS // 8), dtype=np.uint8)
            return np.unpackbits(packed, axis=1).astype(np.float32)
        if self.data != "MNIST":
            raise ValueError(f"data is {self.data!r}; expected 'random' or 'MNIST'")
        path = mnist_file()
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        grey = np.frombuffer(content, dtype=np.uint8, offset=16).reshape(-1, PIXELS)
        if len(grey) < self.rows:
            raise ValueError(f"{path} holds {len(grey)} rows; expected {self.rows}")
        return (grey[: self.rows] > 127).astype(np.float32)


def mnist_file() -> Path:
    """MNIST's training images, packed or not, in the folder PPL_VAE_DATA.

    Raises:
        ValueError: If they are not there.
    """
    root = Path(os.environ.get("PPL_VAE_DATA", "~/.cache/ppl_vae")).expanduser()
    name = "train-images-idx3-ubyte"
    for path in (root / "MNIST" / "raw" / name, root / "MNIST" / "raw" / f"{name}.gz"):
        if path.exists():
            return path
    raise ValueError(f"MNIST/raw/{name} is not in {root}: set PPL_VAE_DATA to the folder that holds MNIST/raw")
