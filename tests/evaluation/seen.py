"""The page as a reader sees it, for the tests of the report."""

from __future__ import annotations

from html.parser import HTMLParser

from evaluation.report import write_report


def page(run_dir):
    return write_report(run_dir).read_text(encoding="utf-8")


class Visible(HTMLParser):
    """What a reader sees, without the charts' inside, and every attribute of every element."""

    def __init__(self, text):
        super().__init__()
        self.parts, self.tags, self.attributes, self.hidden = [], [], [], 0
        self.feed(text)
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.hidden += tag in ("style", "svg", "title")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("style", "svg", "title")

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(data)


def leaves(value, path=()):
    """Every number and text of a JSON value with its path."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, item in items for leaf in leaves(item, (*path, key))]
    return [(path, value)]
