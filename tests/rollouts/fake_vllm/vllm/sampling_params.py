"""Structured output, which is not asked for."""


class StructuredOutputsParams:
    pass
