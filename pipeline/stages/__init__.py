"""The stages: each takes typed settings, sealed inputs and a context, and fills one artefact. They never import one
another; what they share lies in `base` and `offline`. Layer 4."""
