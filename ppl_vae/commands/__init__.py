"""The commands of ``ppl-vae``: a module each, whose ``run(argv)`` returns an exit code. `ppl_vae.cli` lists them."""
