"""The report of a run: what it holds, that it needs nothing else, and that a browser shows it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sjepa.config.load import overridden
from sjepa.core.errors import UserError
from sjepa.entrypoints.compare import compare
from sjepa.entrypoints.evaluate import evaluate_weights
from sjepa.reporting.page import bullets, page, table
from sjepa.s_jepa.schema import load_config
from sjepa.training.report import Section
from tests.support.runs import TWO_PHASES, run

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The tags of a page, checked to be closed in order, and its text by section."""

    VOID = ("meta", "br", "img", "path", "use", "rect")

    def __init__(self, text):
        super().__init__()
        self.open, self.titles, self.addresses = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID[:3]:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("reported")
    assert run(corpus, root, *TWO_PHASES, "logging.report=true") == 0
    return root / "r/train"


@pytest.fixture(scope="module")
def evaluated(corpus, trained):
    """The report after evalsjepa."""
    overrides = [f"init_weights={trained / 'weights/best.pt'}", f"dataset.test_path={corpus / 'test.zip'}", "run_name=r",
                 f"runs_root={trained.parents[1]}", f"evaluation.labels={corpus / 'labels.tsv'}", "dataset.num_workers=0",
                 "probe.tasks=[frame_phones]", "probe.splits=2", "train.precision=fp32"]  # fmt: skip
    assert evaluate_weights(load_config(None, overrides), overridden=overridden(overrides)) == 0
    return trained / "report.html"


def test_it_is_one_file_that_loads_nothing(evaluated):
    text = evaluated.read_text()
    assert all(address.startswith(("#", "data:")) for address in Page(text).addresses)
    assert not re.findall(r"(?:url|fetch|import)\(['\"]?https?:", text)


def test_its_sections(evaluated, trained):
    text = evaluated.read_text()
    assert Page(text).titles == ["Health", "Results", "Data", "Curves", "Evaluation", "Entropies", "Units", "Probes",
                                 "Configuration"]  # fmt: skip
    assert "every update had a finite loss and gradient" in text
    assert "95 % interval" in text
    assert "untrained" in text
    assert "run_name: r" in text
    summary = json.loads((trained / "data.json").read_text())
    assert summary["train"]["clips"] == sum(summary["train"]["seconds"]["counts"])
    assert -60 < summary["level_dbfs"]["edges"][0] < 0


def test_units_can_be_heard(evaluated, corpus):
    """The nearest frames of every component that is used, from different clips, as MP3."""
    data = json.loads(re.search(r'id="unit-audio">(.*?)</script>', evaluated.read_text())[1])
    assert data
    for _, examples in data:
        names = [name for name, _, _ in examples]
        assert 1 <= len(names) == len(set(names))
        assert all(audio.startswith("data:audio/") and len(audio) > 500 for *_, audio in examples)


def test_a_run_without_evaluation_has_a_report_too(corpus, tmp_path):
    assert run(corpus, tmp_path, "train.epochs=1", "logging.report=true") == 0
    assert "Units" in Page((tmp_path / "r/train/report.html").read_text()).titles


def test_warnings_of_the_log_come_first(trained, tmp_path):
    from sjepa.reporting.run_dir import RunDir
    from sjepa.reporting.run_page import write_run_page
    from sjepa.s_jepa.metrics import FIGURES

    shutil.copytree(trained, tmp_path / "train")
    (tmp_path / "train/logs/train_x.log").write_text("2026-01-01 00:00:00.000 | WARNING  | collapse: <b> & more\n")
    write_run_page(tmp_path / "out.html", RunDir(tmp_path / "train"), FIGURES, name="r")
    assert '<li class="bad">collapse: &lt;b&gt; &amp; more</li>' in (tmp_path / "out.html").read_text()


def test_runs_are_compared(trained, evaluated, corpus, tmp_path):
    shutil.copytree(trained.parents[1] / "r", tmp_path / "moved/other")  # with its evaluation
    assert compare([trained, tmp_path / "moved/other"], tmp_path / "compare.html") == 0
    text = (tmp_path / "compare.html").read_text()
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    probed = [row for row in rows if row[:3] == ["frame_phones", "linear", "accuracy"]]
    names = [row[3] for row in probed]
    assert len(names) == len(set(names)) == 5  # each run's encoder, and the baselines once
    assert {"MFCC", "MFCC, by clip", "untrained"} < set(names)
    assert sum(name.endswith("other") for name in names) == 1
    assert all(re.match(r"0\.\d{3}", row[5]) for row in probed)
    assert Page(text).titles == ["Runs", "Curves", "Results", "Probes"]
    assert "other" in text
    for folders, what in [
        ([trained], "two or more"),
        ([trained, trained], "named twice"),
        ([trained, tmp_path], "is no run"),
    ]:
        with pytest.raises(UserError, match=what):
            compare(folders, tmp_path / "no.html")
    assert not (tmp_path / "no.html").exists()


def test_text_is_escaped_and_numbers_are_aligned():
    text = page(
        "<a>", "&", [Section("<s>", table(["<n>", "v"], [("<x>", 1), ("y", "2.50")]) + bullets(["<l>"], bad=["<m>"]))]
    )
    assert not re.search(r"<(a|s|n|x|l|m)>", text)
    assert text.count("<td class=number>") == 2


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver: the report is not looked at in a browser")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield found
    found.quit()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_and_plays_a_unit(browser, evaluated, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(Path(evaluated).as_uri())
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
    ink = "return [...document.querySelectorAll('figure svg text')].map((text) => getComputedStyle(text).fill)"
    assert colour not in browser.execute_script(ink)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    tile = browser.find_element("css selector", ".tile")
    tile.click()
    assert tile.get_attribute("aria-pressed") == "true"
    examples = browser.find_elements("css selector", ".heard .example")
    assert 1 <= len(examples) <= 5
    playable = "const done = arguments[0]; const a = new Audio(JSON.parse(document.getElementById('unit-audio').textContent)[0][1][0][2]);" \
               "a.onloadedmetadata = () => done(a.duration); a.onerror = () => done(-1)"  # fmt: skip
    assert 0.3 < browser.execute_async_script(playable) < 1.2
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
