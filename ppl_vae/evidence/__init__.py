"""The evidence log p(x): quadrature, enumeration, closed form, importance sampling and annealing.

`log_evidence` chooses the best method that applies. This package does not import `VAE`: it takes any `densities.Model`
(an object with p_z, p_x and q_z), or a ``(model, guide)`` pair.
"""
