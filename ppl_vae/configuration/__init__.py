"""What a run is made of, as text: names and import paths to pieces (`pieces`), command line and YAML (`config`)."""
