"""Errors that speak to the person at the keyboard, each with its exit code.

A `TrivetError` ends a command in one sentence and no traceback; everything else is a defect of ours and keeps its
traceback. Layer 0: imported everywhere, imports nothing.
"""

from __future__ import annotations


class TrivetError(Exception):
    """A failure whose message says what was found, where, what was expected and what to type next."""

    exit_code = 1


class RecipeError(TrivetError):
    """The recipe, or the command line that changes it, is wrong."""

    exit_code = 2


class DataError(TrivetError):
    """A data file is missing a row's field, is empty, cannot be decoded, or nothing of it is left."""

    exit_code = 65


class SourceUnreachableError(TrivetError):
    """A model or a data source is neither on this machine nor reachable from it."""

    exit_code = 69


class BusyError(TrivetError):
    """Another live process holds the run directory or an artefact."""

    exit_code = 73


class DiskError(TrivetError):
    """The disk is full or cannot be written."""

    exit_code = 74


class PreemptedError(TrivetError):
    """A signal asked the run to stop; its state is saved and the same command goes on from there."""

    exit_code = 75
