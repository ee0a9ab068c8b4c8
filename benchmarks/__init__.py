"""Comparisons with peers that anybody can repeat; nothing here is installed."""
