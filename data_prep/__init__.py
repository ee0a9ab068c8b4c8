"""Data preparation: raw files of many formats become records, records become token ids with response masks."""
