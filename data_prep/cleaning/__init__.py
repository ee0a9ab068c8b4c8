"""Cleaning of training data by named, counted, reversible rules; after `split`, before `limit` and `chat`.

`texts`, `shape`, `content`, `language`, `personal` and `repair` look at one text; `rules` at one record, by a table of
rules; `near`, `pairs` and `contamination` at records among others; `cleaner` puts them in order for a data set. What
is dropped is returned with its rule, score and source line (`dropped`).
"""

from __future__ import annotations

from data_prep.cleaning.cleaner import Cleaner
from data_prep.cleaning.dropped import Dropped, tell_dropped, write_dropped

__all__ = ["Cleaner", "Dropped", "tell_dropped", "write_dropped"]
