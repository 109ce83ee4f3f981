"""Programs beyond p(z) p(x|z), put together from the same pieces."""

from ppl_vae.programs.semi_supervised import SemiSupervisedVAE

__all__ = ["SemiSupervisedVAE"]
