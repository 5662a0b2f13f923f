"""Reads the page of `nsa-onnx explain`, for its tests without a browser."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """The elements of a page, in order, as (name, attributes, own text)."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in ("meta", "link"):
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        if self.open:
            self.open[-1][2] += data

    def named(self, tag, kind=None):
        return [e for e in self.elements if e[0] == tag and (kind is None or e[1].get("class") == kind)]

    def drawings(self, start):
        """(tokens of the width, boxes as (class, first token, tokens)) of the pictures whose label starts so."""
        found, current = [], None
        for tag, attributes, _ in self.elements:
            if tag == "svg":
                current = None
                if attributes.get("aria-label", "").startswith(start):
                    current = (int(attributes["data-tokens"]), [])
                    found.append(current)
            elif tag == "rect" and current is not None:
                x, width = (float(attributes[key].removesuffix("%")) * current[0] / 100 for key in ("x", "width"))
                current[1].append((attributes["class"], round(x, 1), round(width, 1)))  # tokens are whole numbers
        return found


def of(boxes, *kinds):
    return [(x, width) for kind, x, width in boxes if kind in kinds]


def part(html, ident):
    """What is in the part of the page whose heading has this id."""
    return html.split(f'aria-labelledby="{ident}">')[1].split("</section>")[0]


def section_of(html, index):
    """The HTML of one node's section."""
    return html[html.index(f'id="node-{index}"') :].split('class="node"')[0]
