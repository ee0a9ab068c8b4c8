"""Trivet's pipeline: recipe, supervisor, stages and the sealed artefacts they hand over."""
