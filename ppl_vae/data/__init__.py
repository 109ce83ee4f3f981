"""Data sets: where they come from, how they are split and binarised, and how they are read in batches."""

from ppl_vae.data.dataset import Dataset
from ppl_vae.data.held import as_split
from ppl_vae.data.loading import from_tensors, load, names
from ppl_vae.data.rows import Rows
from ppl_vae.data.splits import Split
from ppl_vae.data.tables import Table, from_table

__all__ = ["Dataset", "Rows", "Split", "Table", "as_split", "from_table", "from_tensors", "load", "names"]
