"""The configuration of a run: names and import paths of pieces (`pieces`), command line and YAML (`config`)."""
