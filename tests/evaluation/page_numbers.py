"""The numbers of a report's page where they stand, for the test that computes them anew."""

from __future__ import annotations

import re

import lxml.html

SECTIONS = (
    "verdict", "frontier", "policies", "families", "reward-1", "reward-2", "ppo-1", "data", "stages"
)  # fmt: skip
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
                    heading = self._heading(element, heading)
                for row, column, text in self._read(element, section):
                    if numbers(text):
                        assert (name, heading, row, column) not in found, (name, heading, row, column)
                        found[name, heading, row, column] = numbers(text)
        return found

    @staticmethod
    def _heading(element, before):
        """Of data sets, which are many, tables are told apart by both their headings."""
        text = text_of(element)
        if next(element.iterancestors("section")).get("id") != "data" or element.tag in ("h2", "h3"):
            return text
        return f"{before.partition(' / ')[0]} / {text}"

    def _read(self, element, section):
        if element.tag == "tr" and element.getparent().tag == "tbody":
            heads = element.findall("th")
            label = text_of(heads[0]) if heads else str(element.getparent().index(element))
            if section.get("id") == "frontier":  # what is compared in one value stands in the next two cells
                label = f"{label}: {', '.join(text_of(cell) for cell in element.findall('td')[:2])}"
            for column, cell in enumerate(element.findall("td")):
                if cell.find("code") is None:
                    yield label, column, text_of(cell)
        elif element.tag == "dd" and "keys" not in (element.getparent().getparent().get("class") or ""):
            yield text_of(element.getprevious()), 0, text_of(element)
        elif element.tag == "p" and element.getparent() is section and element.get("class") != "note":
            before = [each for each in section.findall("p") if each.get("class") != "note"]
            if section.get("id") != "verdict":
                yield ("told", "watched")[before.index(element)], 0, text_of(element)

    def lead(self):
        """The first sentence, with its tone."""
        (line,) = self.root.get_element_by_id("verdict").find_class("lead")
        return line.get("class").split()[1], text_of(line)

    def losses(self):
        """The sentences on what got worse."""
        for line in self.root.get_element_by_id("worse").iter("li"):
            yield " ".join((line.find("span").tail or "").split())

    def findings(self):
        """Every sentence of the verdict with its tone."""
        for line in self.root.get_element_by_id("verdict").iter("li"):
            mark = line.find("span")
            yield line.get("class"), " ".join((mark.tail or "").split())

    def through(self):
        """The numbers of the first line: how far the run is."""
        return numbers(text_of(self.root.get_element_by_id("verdict").find_class("state")[0]))

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

    def charts(self):
        """(stage, chart) to its drawing, of every curve."""
        stage = ""
        for element in self.root.get_element_by_id("curves").iter("h3", "figure"):
            if element.tag == "h3":
                stage = text_of(element)
            else:
                yield (stage, " ".join((element.find("figcaption").text or "").split())), Drawing(element.find("svg"))
        for figure in self.root.get_element_by_id("ppo-1").iter("figure"):
            if figure.find("figcaption") is not None:
                yield ("ppo", " ".join((figure.find("figcaption").text or "").split())), Drawing(figure.find("svg"))

    def unnamed_chart(self, section):
        """The one of a section that has no caption: a reliability diagram, PPO's way on the frontier."""
        (figure,) = (f for f in self.root.get_element_by_id(section).iter("figure") if f.find("figcaption") is None)
        return Drawing(figure.find("svg"))

    def bars(self):
        """The columns of every histogram of the data section: from, to, rows."""
        for svg in self.root.get_element_by_id("data").iter("svg"):
            yield [numbers(text_of(column.find("title"))) for column in svg.iter("rect")]

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


class Drawing:
    """A line chart, read as an eye reads it: by the numbers along its axes."""

    def __init__(self, svg):
        self.svg = svg
        sides = {"end": [], "middle": []}
        for text in svg.iter("text"):
            if text.get("class") is None:
                across = text.get("text-anchor") == "middle"
                place = float(text.get("x")) if across else float(text.get("y")) - 4
                sides[text.get("text-anchor")].append((self._tick(text.text), place))
        self._x, self._y = (self._scale(sides[side]) for side in ("middle", "end"))

    @staticmethod
    def _tick(label):
        return float(label.replace(",", "").replace("k", "e3"))

    @staticmethod
    def _scale(ticks):
        """From a value to its place; None where fewer than two numbers stand along the axis."""
        if len(ticks) < 2:
            return None
        (low, start), (high, end) = ticks[0], ticks[-1]
        return lambda value: start + (value - low) / (high - low) * (end - start)

    def lines(self):
        """Every line in its order: of each point its place, and the numbers that it says when it is pointed at."""
        found = {}
        for each in self.svg.iter("polyline", "circle"):
            style = each.get("class").split()[1] if each.get("class") != "ring" else None
            if each.tag == "polyline":
                places = [tuple(map(float, pair.split(","))) for pair in each.get("points").split()]
                found[style] = [(place, None) for place in places]
            elif style is not None:
                dots = found.setdefault(f"dots of {style}", [])
                title = each.find("title")
                dots.append(((float(each.get("cx")), float(each.get("cy"))), title is not None and text_of(title)))
        for style in [name for name in found if f"dots of {name}" in found]:
            found[style] = found.pop(f"dots of {style}")
        return list(found.values())

    def shows(self, place, x, y, slack=0.2):
        """Whether a point stands where a value belongs, to a fifth of a pixel."""
        return (self._x is None or abs(self._x(x) - place[0]) <= slack) and abs(self._y(y) - place[1]) <= slack
