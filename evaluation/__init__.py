"""Evaluation: what each policy of a run is worth, with its uncertainty. Reads artefacts, never imports stages."""
