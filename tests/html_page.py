"""Parser of the HTML pages that drgrade writes."""

import shutil
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr", "rect", "line", "circle"}

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""Command of the browser; None if it is not installed."""


class Page(HTMLParser):
    """Collects tags, attributes, text and table cells; fails on unmatched tags."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.rows = [], [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]

    @property
    def images(self):
        return [value for tag, key, value in self.attributes if (tag, key) == ("img", "src")]
