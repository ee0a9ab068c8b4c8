"""What a data set's content is, as a hash: a stage whose sources changed by one byte is trained anew.

Never by name or time of change: files are hashed, hub data sets are pinned to the commit they resolve to.
"""

from __future__ import annotations

import hashlib

from data_prep.readers.containers import local_files
from data_prep.readers.files import data_suffix
from data_prep.readers.hub import resolve_commit
from pipeline.durable import sha256_file
from pipeline.recipe.schema import SourceSettings

READING_VERSION = b"reading 2\n"
"""Raised when the same file comes to be read as other records, so that what was made of the old ones is made anew."""


def source_fingerprint(source: SourceSettings) -> str:
    """SHA-256 over the content of one source.

    Raises:
        DataError: the file or folder is missing (the message suggests near names).
        SourceUnreachableError: a hub data set is neither cached nor reachable.
    """
    files = local_files(source.path)
    if files is None:
        commit = resolve_commit(source.path, source.revision)
        return hashlib.sha256(READING_VERSION + f"{source.path}@{commit}:{source.split}".encode()).hexdigest()
    digest = hashlib.sha256(READING_VERSION)
    for path in files:
        # The suffix decides how a file is read; the rest of its name says nothing of the rows.
        digest.update(f"{data_suffix(path)}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()
