"""Estimators at fixed parameters: one batch, the same noise, thousands of gradients. `compare` is the entry point."""
