"""Draw docs/images/latent.gif, a way through the latent plane beside the codes of the data.

Usage: python docs/latent_gif.py RUN ROOT, after

    ppl-vae train --config article --data.binarize threshold --likelihood.allow_grey false --epochs 25 --data.root ROOT

(three minutes on two cores).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw

import ppl_vae as pv
from ppl_vae.plots.latent import CLASS_COLOURS

SIDE, FRAMES, DATA = 150, 48, 4000


def main(run: str, root: str) -> None:
    """Write the picture."""
    vae = pv.load_run(run)
    test = pv.data.load("MNIST", binarize="threshold", root=root).test
    codes = vae.encode(test.x[:DATA])
    reach = codes.abs().quantile(0.97).item()
    angle = torch.arange(FRAMES) / FRAMES * 2 * math.pi
    radius = reach * (0.62 + 0.3 * torch.sin(3 * angle))
    way = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    def pixels(z: torch.Tensor) -> np.ndarray:
        return ((z.numpy() / reach / 1.1 + 1) / 2 * SIDE).astype(int)

    plane = np.full((SIDE, SIDE, 3), 255, np.uint8)
    for (x, y), label in zip(pixels(codes), test.labels[:DATA].tolist(), strict=True):
        if 0 <= x < SIDE and 0 <= y < SIDE:
            plane[SIDE - 1 - y, x] = (255 * np.array(to_rgb(CLASS_COLOURS[label]))).astype(np.uint8)
    frames = []
    for digit, (x, y) in zip(vae.decode(way).squeeze(1).numpy(), pixels(way), strict=True):
        left = Image.fromarray((255 * digit).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        right = Image.fromarray(plane)
        ImageDraw.Draw(right).ellipse([x - 5, SIDE - 6 - y, x + 5, SIDE + 4 - y], "white", "black", 2)
        frame = Image.new("RGB", (2 * SIDE + 10, SIDE), "white")
        frame.paste(left, (0, 0))
        frame.paste(right, (SIDE + 10, 0))
        frames.append(frame.quantize(32, dither=Image.Dither.NONE))
    out = Path(__file__).parent / "images" / "latent.gif"
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=110, loop=0, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
