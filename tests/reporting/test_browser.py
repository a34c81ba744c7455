"""The page in headless Chromium: tooltips on hover, tap and focus, narrow screens, print, no errors.

Chromium prints the document as it is after scripts have run (``--dump-dom``), so each test adds a script to a
copy of the page, which simulates the reader and writes the result into the document.
"""

import json
import re
import subprocess
from dataclasses import replace
from html import unescape

import pytest
from example_study import example_study
from html_page import CHROMIUM

from drgrade.reporting.figures.canvas import style
from drgrade.reporting.schema import Budget
from drgrade.reporting.writer import draw_figures, render_page
from drgrade.stats.estimates import Range

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)")

HELPERS = """
const result = {errors: []};
window.addEventListener("error", (event) => result.errors.push(event.message));
const tip = () => {
  const shown = document.getElementById("tip");
  return {hidden: shown.hidden, text: shown.textContent};
};
const middle = (part) => {
  const box = part.getBoundingClientRect();
  return {bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};
};
const visible = (part) => getComputedStyle(part).display !== "none";
"""


@pytest.fixture(scope="module")
def html():
    study = example_study()
    keys = ("rotation-ssl", "msssl-random")
    small = replace(
        study,
        methods=[method for method in study.methods if method.key in keys],
        rows=[row for row in study.rows if row.method in keys],
        comparisons=[each for each in study.comparisons if (each.first, each.second) == keys],
        pretrainings=study.pretrainings[:1],
    )
    with style():
        return render_page(small, draw_figures(small))


def chromium(*arguments):
    """Run Chromium; its messages concern a missing desktop."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def without_policy(html):
    """Remove the content security policy, which blocks the script of the test."""
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)


def run_script(html, folder, script, *arguments):
    """Run a script after the page has loaded; return ``result``. No error may be raised."""
    after = f"<script>{HELPERS}</script>"
    done = "document.body.insertAdjacentHTML('beforeend', '<pre id=result></pre>');"
    done += "document.getElementById('result').textContent = JSON.stringify(result);"
    page = without_policy(html).replace("<head>", f"<head>{after}", 1)
    page = page.replace("</body>", f"<script>(() => {{{script}}})(); {done}</script></body>")
    (folder / "page.html").write_text(page)
    dom = chromium(*arguments, "--dump-dom", f"file://{folder}/page.html")
    result = json.loads(unescape(re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert result["errors"] == []
    return result


def test_page_runs_without_errors_under_its_own_policy(html, tmp_path):
    watch = "<script>document.title = 'foreign script ran'</script>"
    (tmp_path / "page.html").write_text(html.replace("</body>", f"{watch}</body>"))
    dom = chromium("--dump-dom", f"file://{tmp_path}/page.html")
    assert '<html lang="en" class="js">' in dom  # its own script ran
    assert "data-tip=" in dom
    assert "<title>foreign script ran" not in dom


def test_hovering_a_point_shows_its_values(html, tmp_path):
    result = run_script(
        html,
        tmp_path,
        """
        result.before = tip();
        const parts = [...document.querySelectorAll("svg.figure .tip")];
        const part = parts.find((other) => /mean.*95 %/.test(other.dataset.tip));
        part.dispatchEvent(new PointerEvent("pointermove", middle(part)));
        result.on = tip(); result.expected = part.dataset.tip; result.marked = part.classList.contains("on");
        document.body.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 1, clientY: 1}));
        result.after = tip();
        """,
    )
    assert result["before"]["hidden"]
    assert result["on"] == {"hidden": False, "text": result["expected"]}
    assert result["marked"]
    assert "mean 0.294, 95 % " in result["expected"]
    assert result["after"]["hidden"]


def test_tap_near_a_point_shows_its_values(html, tmp_path):
    result = run_script(
        html,
        tmp_path,
        """
        const figure = document.querySelectorAll("svg.figure")[1];  // the differences: nothing lies on top
        const part = figure.querySelectorAll(".tip")[0];
        const near = middle(part);
        const box = part.getBoundingClientRect();
        near.clientX -= box.width / 2 + 8;
        figure.dispatchEvent(new PointerEvent("pointerdown", {...near, pointerType: "touch"}));
        result.tip = tip(); result.expected = part.dataset.tip;
        """,
    )
    assert result["tip"] == {"hidden": False, "text": result["expected"]}


def test_every_part_shows_its_values_when_it_has_the_focus(html, tmp_path):
    result = run_script(
        html,
        tmp_path,
        """
        result.wrong = []; result.count = 0;
        for (const section of document.querySelectorAll(".at")) section.classList.add("shown");
        for (const figure of document.querySelectorAll("svg.figure")) {
          const parts = [...figure.querySelectorAll(".tip")];
          parts[0].focus({focusVisible: true});
          for (const part of parts) {
            result.count += 1;
            if (document.activeElement !== part || tip().hidden || tip().text !== part.dataset.tip)
              result.wrong.push(part.dataset.tip);
            part.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
          }
        }
        document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
        result.last = tip();
        result.stops = document.querySelectorAll("svg.figure .tip[tabindex='0']").length;
        result.figures = document.querySelectorAll("svg.figure").length;
        """,
    )
    assert result["count"] == html.count('class="tip"') > 400
    assert result["wrong"] == []
    assert result["last"]["hidden"]
    assert result["stops"] == result["figures"]


def test_label_fraction_can_be_chosen(html, tmp_path):
    result = run_script(
        html,
        tmp_path,
        """
        const sections = [...document.querySelectorAll(".at")];
        result.before = sections.filter(visible).map((section) => section.dataset.share);
        document.querySelector("input[value='25pct']").click();
        result.after = sections.filter(visible).map((section) => section.dataset.share);
        """,
    )
    assert result["before"] == ["5pct"]
    assert result["after"] == ["25pct"]


def test_page_without_scripts_shows_all_fractions(html, tmp_path):
    silent = without_policy(re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL))
    result = run_script(
        silent, tmp_path, "result.shown = [...document.querySelectorAll('.at')].filter(visible).length;"
    )
    assert result["shown"] == 5


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_page_fits_the_width_of_the_screen(html, tmp_path, width):
    inside = measure_in_frame(html, tmp_path, width)
    assert inside["width"] == width
    assert inside["scroll"] <= width
    assert inside["outside"] == []
    assert inside["least"] > 7.5  # px: text of the figures


@pytest.fixture(scope="module")
def long_html():
    """Nine methods of two protocols, with their budgets."""
    study = example_study()
    methods, rows = [], []
    for number in range(9):
        like = study.methods[number % 2 * 2]  # of both protocols
        key, line = f"{like.key}-{number}", f"a pretext with a name, number {number // 2}, pre-trained"
        methods.append(replace(like, key=key, label=f"{line}, {like.protocol}", line=line))
        rows += [
            replace(row, method=key)
            for row in study.rows
            if row.method == like.key and row.label_fraction in (0.05, 1.0)
        ]
    unknown = Range(float("nan"), float("nan"))
    budgets = [
        Budget(
            each.key, 5, *[Range(9600, 19200)] * 3, 1000.0, True, {1.0: Range(20, 40)}, {1.0: unknown}, 9.0
        )
        for each in methods
    ]
    comparisons = [
        replace(each, first=method.key, second=methods[0].key)
        for method in methods[1:]
        for each in study.comparisons[:5]
    ]
    published = [replace(row, beside=methods[0].line) for row in study.published]
    long = replace(
        study, methods=methods, rows=rows, budgets=budgets, comparisons=comparisons, published=published
    )
    with style():
        return render_page(long, draw_figures(long))


@pytest.mark.parametrize("width", [360, 1280])
def test_page_of_many_methods_fits_the_width_of_the_screen(long_html, tmp_path, width):
    inside = measure_in_frame(long_html, tmp_path, width)
    assert inside["scroll"] <= width
    assert inside["outside"] == []
    assert inside["least"] > 7.5
    assert 'id="table-overview"' in long_html
    assert '<h2 id="budget">' in long_html


def measure_in_frame(html, folder, width):
    """Use a frame, because windows of Chromium have a minimum width."""
    (folder / "inner.html").write_text(html)
    script = """
      const inner = document.querySelector("iframe").contentDocument, root = inner.documentElement;
      const outside = (part) => {
        const box = part.getBoundingClientRect();
        return !part.closest(".scroll") && (box.right > WIDTH + 0.5 || box.left < -0.5);
      };
      const size = (text) => {
        const drawn = text.ownerSVGElement;
        const scale = drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width;
        return parseFloat(text.style.fontSize) * scale;
      };
      const shown = (part) => part.getClientRects().length > 0;
      const texts = [...inner.querySelectorAll("svg.figure text")].filter(shown);
      const wide = [...inner.querySelectorAll("body *")].filter(outside);
      const result = {
        width: root.clientWidth, scroll: root.scrollWidth,
        outside: wide.map((part) => part.outerHTML.slice(0, 80)),
        least: Math.min(...texts.map(size)),
      };
      document.getElementById("result").textContent = JSON.stringify(result);
    """.replace("WIDTH", str(width))
    (folder / "outer.html").write_text(
        f'<iframe src="inner.html" width="{width}" height="800" style="border:0"></iframe>'
        '<pre id="result"></pre>'
        f"<script>window.addEventListener('load', () => {{{script}}});</script>"
    )
    dom = chromium(
        "--allow-file-access-from-files",
        "--virtual-time-budget=10000",
        "--dump-dom",
        f"file://{folder}/outer.html",
    )
    return json.loads(unescape(re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)[1]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(html, tmp_path, scheme):
    """WCAG requires a contrast of 4.5 for text and of 3 for lines and points."""
    result = run_script(
        html,
        tmp_path,
        """
        result.dark = matchMedia("(prefers-color-scheme: dark)").matches;
        const style = getComputedStyle(document.documentElement);
        result.colours = {};
        for (const name of ["ground", "card", "text", "soft", "heat", ...Array(6).keys()]) {
          const key = typeof name === "number" ? `series-${name}` : name;
          result.colours[key] = style.getPropertyValue(`--${key}`).trim();
        }
        """,
        *(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []),
    )
    assert result["dark"] == (scheme == "dark")
    colours = result["colours"]
    for ground in ("ground", "card"):
        assert contrast(colours["text"], colours[ground]) > 4.5
        assert contrast(colours["soft"], colours[ground]) > 4.5
    assert contrast(colours["text"], colours["heat"]) > 4.5
    for number in range(6):
        assert contrast(colours[f"series-{number}"], colours["card"]) > 3


def contrast(one, other):
    """Compute the contrast of two colours (WCAG 2)."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_printed_page_contains_all_fractions(html, tmp_path):
    (tmp_path / "page.html").write_text(html)
    printed = tmp_path / "page.pdf"
    chromium("--no-pdf-header-footer", f"--print-to-pdf={printed}", f"file://{tmp_path}/page.html")
    data = printed.read_bytes()
    assert data.startswith(b"%PDF")
    pages = max(int(count) for count in re.findall(rb"/Type\s*/Pages.*?/Count\s+(\d+)", data, re.DOTALL))
    assert 5 < pages < 30
    widths = {tuple(map(float, box.split())) for box in re.findall(rb"/MediaBox\s*\[([^\]]+)\]", data)}
    assert all(box[2:] == pytest.approx((595, 842), abs=2) for box in widths)  # A4
