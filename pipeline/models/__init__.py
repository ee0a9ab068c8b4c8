"""Models: where they come from, how they are loaded, how adapters are attached and handed on. Layer 2."""
