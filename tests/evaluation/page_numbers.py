"""The numbers of a report's page where they stand, for the test that computes them anew."""

from __future__ import annotations

import re

import lxml.html

SECTIONS = ("verdict", "policies", "families", "reward-1", "reward-2", "ppo-1")
NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]\d+)?(?!\w)")
HEADINGS = ("h2", "h3", "h4", "summary")


def text_of(element):
    return " ".join(element.text_content().split())


def numbers(text):
    return NUMBER.findall(text)


def agrees(shown, value, slack=0.01):
    """Whether a number as it is written is `value`, rounded; `slack` in units of its last digit."""
    written = shown.replace(",", "").replace("−", "-")
    mantissa, _, exponent = written.partition("e")
    digits = len(mantissa.partition(".")[2])
    return abs(float(written) - value) <= (0.5 + slack) * 10.0 ** (int(exponent or 0) - digits) + 1e-12


class Page:
    """A report, by place."""

    def __init__(self, html):
        self.root = lxml.html.fromstring(html)

    def entries(self):
        """`(section, heading, row, column)` to the numbers that stand there, notes and settings left out."""
        found = {}
        for name in SECTIONS:
            section = self.root.get_element_by_id(name)
            heading = ""
            for element in section.iter():
                if element.tag in HEADINGS:
                    heading = text_of(element)
                for row, column, text in self._read(element, section):
                    if numbers(text):
                        assert (name, heading, row, column) not in found, (name, heading, row, column)
                        found[name, heading, row, column] = numbers(text)
        return found

    def _read(self, element, section):
        if element.tag == "tr" and element.getparent().tag == "tbody":
            heads = element.findall("th")
            label = text_of(heads[0]) if heads else str(element.getparent().index(element))
            for column, cell in enumerate(element.findall("td")):
                yield label, column, text_of(cell)
        elif element.tag == "dd" and "keys" not in (element.getparent().getparent().get("class") or ""):
            yield text_of(element.getprevious()), 0, text_of(element)
        elif element.tag == "p" and element.getparent() is section and element.get("class") != "note":
            before = [each for each in section.findall("p") if each.get("class") != "note"]
            if section.get("id") != "verdict":
                yield ("told", "watched")[before.index(element)], 0, text_of(element)

    def findings(self):
        """Every sentence of the verdict with its tone."""
        for line in self.root.get_element_by_id("verdict").iter("li"):
            mark = line.find("span")
            yield line.get("class"), " ".join((mark.tail or "").split())

    def legends(self):
        """(stage, chart) to the last values in its legend."""
        stage = ""
        for element in self.root.get_element_by_id("curves").iter("h3", "figcaption"):
            if element.tag == "h3":
                stage = text_of(element)
            else:
                yield (stage, " ".join((element.text or "").split())), self._last(element)
        for caption in self.root.get_element_by_id("ppo-1").iter("figcaption"):
            yield ("ppo", " ".join((caption.text or "").split())), self._last(caption)

    @staticmethod
    def _last(caption):
        return [
            text_of(line).rpartition("last ")[2]
            for line in caption.iter("span")
            if "last" in text_of(line) and line.get("class") != "legend"
        ]

    def samples(self):
        """Score and divergence of every rollout's answer that is shown: rollout, score, nats."""
        for answer in self.root.get_element_by_id("ppo-1").find_class("answer"):
            yield [float(part) for part in numbers(text_of(answer.find("p")))]
