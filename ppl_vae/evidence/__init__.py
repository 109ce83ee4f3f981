"""Log p(x): quadrature, enumeration, closed form, importance sampling, annealing; `log_evidence` takes the best.

It knows no `VAE`: whatever has p_z, p_x and q_z is a `densities.Model`, and a ``(model, guide)`` pair will do.
"""
