"""Data sets: where they come from, how they are split, binarised and handed out in batches."""

from ppl_vae.data.dataset import Dataset
from ppl_vae.data.loading import from_tensors, load, names
from ppl_vae.data.rows import Rows
from ppl_vae.data.splits import Split

__all__ = ["Dataset", "Rows", "Split", "from_tensors", "load", "names"]
