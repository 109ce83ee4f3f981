"""Programs beyond p(z) p(x|z) and q(z|x): each is a model and a guide, made of a VAE's pieces."""

from ppl_vae.programs.incomplete import NotMIWAE, SelfMasking
from ppl_vae.programs.semi_supervised import SemiSupervisedVAE

__all__ = ["NotMIWAE", "SelfMasking", "SemiSupervisedVAE"]
