"""A report to look at: one file, nothing from elsewhere, readable on a phone, whatever folders are called."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from compressors.study.table import Row, Table
from torch_fidelity_lsh import calculate_metrics
from torch_fidelity_lsh.cli import main
from torch_fidelity_lsh.report.metrics import write_report

CALL = {"feature_extractor": "counting", "cuda": False, "verbose": False, "cache": False, "save_cpu_ram": True}
NASTY = '<script>alert(1)</script> "&amp'
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, the text, and whether every element is closed in order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.content = path.read_text()
        self.feed(self.content)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def images(self):
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]


def squares(n, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(100, 130, size=(n, 24, 24, 3))
    return images.astype(np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Two folders of like images, one with an odd one out; the first one has a nasty name."""
    paths = []
    for name, seed in ((NASTY.replace("/", "|"), 0), ("real", 1)):
        folder = tmp_path / name
        folder.mkdir()
        for i, image in enumerate(squares(60, seed)):
            Image.fromarray(image).save(folder / f"{i:02}.png")
        paths.append(str(folder))
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(tmp_path / "real" / "odd <i>.png")
    return paths


@pytest.fixture
def page(folders, counting_extractor, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, **CALL, input1=folders[0], input2=folders[1], fid=True, lsh=True, lsh_knn=True)
    return path


def test_the_numbers_are_those_of_the_call(folders, counting_extractor, tmp_path):
    call = {**CALL, "input1": folders[0], "input2": folders[1], "fid": True, "lsh": True}
    found = write_report(tmp_path / "report.html", **call)
    assert found == calculate_metrics(**call)
    text = Page(tmp_path / "report.html").text
    low, high = found["lsh_recall_ci_low"], found["lsh_recall_ci_high"]
    assert f"{found['lsh_recall']:.3f} [{low:.3f}, {high:.3f}]" in text
    assert f"{found['frechet_inception_distance']:.4g}" in text
    assert "dropped modes" in text


def test_nothing_comes_from_elsewhere_and_names_are_escaped(page, folders):
    parsed = Page(page)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "i>", "link", "iframe", "object"}
    assert all(source.startswith("data:image/png;base64,") for source in parsed.images())
    assert not re.search(r"https?:|url\(|\son\w+=", parsed.content)
    assert folders[0] in parsed.text  # as text, as it is
    assert "odd <i>.png" in parsed.text


def test_the_odd_one_out_is_shown_first_beside_its_nearest(page):
    text = Page(page).text
    shown = text[text.index("Real samples furthest") :]
    assert shown[shown.index("These cost recall.") :].split()[3].startswith("odd")
    assert len(Page(page).images()) == 48


def test_ready_features_and_generators_have_reports_too(features, counting_extractor, tmp_path):
    write_report(tmp_path / "a.html", input1=features[0], input2=features[1], lsh_knn=True, verbose=False)
    assert "row " in Page(tmp_path / "a.html").text
    np.savez(tmp_path / "images.npz", squares(70, 2))
    source = str(tmp_path / "images.npz")
    write_report(tmp_path / "b.html", **CALL, input1=source, input2=source, lsh=True, batch_size=16)
    assert len(Page(tmp_path / "b.html").images()) == 48
    write_report(tmp_path / "c.html", input1=features[0], input2=features[1], fid=True, verbose=False)
    assert not Page(tmp_path / "c.html").images()


def test_samples_that_are_gone_but_kept_as_features_are_rows(folders, counting_extractor, tmp_path):
    kept = {"cache": True, "cache_root": str(tmp_path / "cache"), "input1_cache_name": "run"}
    call = {**CALL, **kept, "input1": folders[0], "input2": folders[1], "lsh": True}
    calculate_metrics(**call)
    shutil.rmtree(folders[0])
    with pytest.warns(UserWarning, match="input1 does not exist"):
        write_report(tmp_path / "r.html", **call)
    assert len(Page(tmp_path / "r.html").images()) == 24


def test_the_command_writes_a_report(folders, counting_extractor, tmp_path, capsys):
    inputs = ["--input1", folders[0], "--input2", folders[1], "--lsh", "--feature-extractor", "counting"]
    options = ["--cpu", "--silent", "--save-cpu-ram", "--report"]
    assert main([*inputs, *options, str(tmp_path / "r.html")]) == 0
    assert "Generated against real" in Page(tmp_path / "r.html").text
    assert main([*inputs, *options, str(tmp_path / "r.txt")]) == 1
    assert "report: the file must end in .html" in capsys.readouterr().err


def test_a_study_shows_table_pictures_and_the_same_latents_in_every_row(tmp_path):
    (tmp_path / "samples").mkdir()
    for name, value in (("a", 200), ("b", 90)):
        picture = np.full((64, 64, 3), value, np.uint8)
        picture[8:] = 0  # below the first line of eight
        Image.fromarray(picture).save(tmp_path / "samples" / f"{name}.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "real.png")
    ends = {f"lsh_{side}_ci_{end}": at for side in ("precision", "recall") for end, at in (("low", 0.4), ("high", 1.0))}
    scores = {"real": {"lsh_precision": 0.91, "lsh_recall": 0.5, **ends}}
    rows = (
        Row("float", scores=scores, samples="samples/a.png"),
        Row("W4 <b>", bits=4, scores=scores, samples="samples/b.png"),
        Row("W2", status="failed", note="returned <NaN>"),
    )
    Table(rows, {"samples": 40}).save_html(tmp_path / "report.html")
    parsed = Page(tmp_path / "report.html")
    assert len(parsed.images()) == 3
    assert "W4 <b>" in parsed.text
    assert "0.91 [0.40, 1.00]" in parsed.text
    assert "W2: failed: returned <NaN>" in parsed.text


def test_a_phone_and_a_desk_show_all_of_it(page, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this system")
    asked = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (360, 1200):
            view = browser.new_page(viewport={"width": width, "height": 800})
            view.on("request", lambda request: asked.append(request.url))
            view.on("dialog", lambda dialog: pytest.fail("a script ran"))
            view.goto(page.as_uri())
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            assert view.evaluate("[...document.querySelectorAll('th')].every(head => head.clientWidth > 80)")
            assert view.evaluate("[...document.images].every(image => image.naturalWidth === 24)")
            view.screenshot(path=tmp_path / f"{width}.png", full_page=True)
        browser.close()
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    seen = torch.from_numpy(np.asarray(Image.open(tmp_path / "360.png").convert("L")).copy())
    assert seen.float().std() > 10  # not blank
