"""The report's page in a real browser: what a reader sees, clicks, types and links to."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from pnp_batch.report.page import write_report
from tests.report.outputs import HOSTILE, HOSTILE_ID, source, written

if TYPE_CHECKING:
    from pathlib import Path

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

MANY, A_PAGE = 10_000, 24


class Reader:
    """Somebody who looks at a report."""

    def __init__(self, browser: Chrome, place: str) -> None:
        self.browser = browser
        self.place = f"file://{quote(place)}"

    def opens(self, state: str = "") -> None:
        self.browser.get("about:blank")
        self.browser.get(self.place + state)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    @property
    def ids(self) -> list[str]:
        """The rows of the page, in their order."""
        script = "return [...document.querySelectorAll('#cards .id')].map((e) => e.textContent)"
        return self.browser.execute_script(script)

    def waits(self, for_ids: list[str]) -> None:
        seconds = WebDriverWait(self.browser, 30, 0.02)
        seconds.until(lambda _: self.ids == for_ids, f"{for_ids}, not {self.ids}")

    def until(self, true) -> None:
        WebDriverWait(self.browser, 30, 0.02).until(lambda _: true())

    def chooses(self, name: str, words: str) -> None:
        Select(self.one(f"[name={name}]")).select_by_visible_text(words)

    def types(self, name: str, text: str) -> None:
        self.one(f"[name={name}]").send_keys(text)

    def presses(self, *keys: str) -> None:
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    @property
    def count(self) -> str:
        return self.one("#count").text

    @property
    def is_open(self) -> bool:
        return bool(self.all("dialog[open]"))


def rows(score=lambda n: n) -> list[dict]:
    """Six rows of two methods, the last one failed, one without a score."""
    prompts = ["a red cat", "a blue cat", "a red dog", "a dog at night", HOSTILE, "a goat"]
    made = [
        {
            "row_id": f"r{n}",
            "image": "a.png",
            "prompt": prompt,
            "colour": "navy",
            "method": "sdedit" if n % 2 else "copy",
            "strength": 0.5 if n % 2 else None,
            "clip_similarity": score(n) / 10,
            "structure_distance": 0.1,
        }
        for n, prompt in enumerate(prompts)
    ]
    made[1] |= {"clip_similarity": None, "not_scored": '{"clip_similarity": "no text"}'}
    made[4]["row_id"] = HOSTILE_ID
    told = {"error_type": "OutOfMemory", "error_message": f"no memory {HOSTILE}"}
    made[5] |= {**told, "clip_similarity": None, "structure_distance": None}
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of an output in a folder that only a quoted address can name."""
    folder = tmp_path_factory.mktemp("one")
    source(folder, "a.png", "teal")
    return write_report(written(folder, rows(), scored=True, where=f"{folder}/#1 out? 50%").uri)


@pytest.fixture
def reader(browser: Chrome, place: str) -> Reader:
    return Reader(browser, place)


def test_filters_choose_rows_and_say_how_many(reader):
    reader.opens()
    reader.waits(["r0", "r1", "r2", "r3", HOSTILE_ID, "r5"])
    assert reader.count == "1 to 6 of 6 rows."
    reader.types("q", "RED")
    reader.waits(["r0", "r2"])
    assert reader.count == "1 to 2 of 2 rows, chosen from 6."
    reader.types("q", " dog")
    reader.waits(["r2"])
    reader.one("[type=reset]").click()
    reader.chooses("status", "OutOfMemory (1)")
    reader.waits(["r5"])
    assert HOSTILE in reader.one(".card .message").text
    reader.chooses("status", "ok (5)")
    reader.chooses("method", "sdedit (3)")
    reader.waits(["r1", "r3"])
    reader.types("q", "nothing like it")
    reader.waits([])
    assert reader.count == "0 rows, chosen from 6."


def test_scores_filter_and_sort(reader):
    reader.opens()
    assert not reader.one("[name=min]").is_enabled()
    reader.chooses("sort", "CLIP, best first")
    reader.waits([HOSTILE_ID, "r3", "r2", "r0", "r1", "r5"])
    reader.chooses("sort", "CLIP, lowest first")
    reader.waits(["r0", "r2", "r3", HOSTILE_ID, "r1", "r5"])
    reader.chooses("score", "CLIP")
    reader.waits(["r0", "r2", "r3", HOSTILE_ID])  # those that have one
    reader.types("min", "0.2")
    reader.waits(["r2", "r3", HOSTILE_ID])
    reader.types("max", "0.3")
    reader.waits(["r2", "r3"])
    assert "CLIP 0.2" in reader.one(".card").text


def test_the_address_holds_the_state_and_back_goes_back(reader):
    reader.opens("#q=red&sort=clip_similarity%3Adesc")
    reader.waits(["r2", "r0"])
    assert reader.one("[name=q]").get_attribute("value") == "red"
    reader.chooses("method", "copy (3)")
    reader.chooses("status", "error (1)")
    reader.waits([])
    reader.browser.back()
    reader.waits(["r2", "r0"])
    assert reader.one("[name=status]").get_attribute("value") == ""
    reader.browser.refresh()
    reader.waits(["r2", "r0"])


def test_a_link_opens_a_row_with_its_parameters(reader):
    reader.opens("#row=r1")
    reader.until(lambda: reader.is_open)
    assert reader.one("dialog h2").text == "a blue cat"
    told = {r.find_element(By.TAG_NAME, "th").text: r.find_element(By.TAG_NAME, "td").text
            for r in reader.all("dialog tr")}  # fmt: skip
    assert told["strength"] == "0.5"
    assert told["seed"] == str(2**62 + 1)
    assert told["CLIP"] == "n/a: no text"
    reader.opens("#row=nobody")
    reader.until(lambda: "No row nobody here" in reader.count)
    assert not reader.is_open


def test_the_slider_parts_the_pictures_by_keys_and_by_mouse(reader):
    reader.opens("#row=r0")
    reader.until(lambda: reader.is_open)
    slider = reader.one("dialog input[type=range]")
    assert "guidance image" in slider.accessible_name
    assert slider == reader.browser.switch_to.active_element
    before, after = "dialog .compare img:nth-of-type(2)", "dialog .compare img:nth-of-type(1)"

    def cut() -> str:
        return reader.one(before).value_of_css_property("clip-path")

    middle = cut()
    reader.presses(Keys.ARROW_RIGHT)
    assert reader.is_open
    assert slider.get_attribute("aria-valuetext") == "51 % guidance image"
    assert cut() != middle
    reader.presses(Keys.END)
    assert cut() == "inset(0px 0% 0px 0px)"
    reader.presses(Keys.HOME)
    assert cut() == "inset(0px 100% 0px 0px)"
    slider.click()  # in its middle
    assert slider.get_attribute("value") in {"49", "50", "51"}
    for image in (before, after):
        script = "return arguments[0].naturalWidth"
        assert reader.browser.execute_script(script, reader.one(image)) == 32
    assert reader.one(before).value_of_css_property("image-rendering") == "pixelated"


def test_keys_lead_through_rows(reader):
    reader.opens()
    reader.presses("j", "j", Keys.ENTER)
    reader.until(lambda: reader.is_open)
    assert reader.one("dialog h2").text == "a blue cat"
    reader.presses("j")
    reader.until(lambda: reader.one("dialog h2").text == "a red dog")
    reader.presses("k", "k")
    reader.until(lambda: reader.one("dialog h2").text == "a red cat")
    reader.presses(Keys.ESCAPE)
    reader.until(lambda: not reader.is_open)
    assert reader.browser.switch_to.active_element.text == "a red cat"
    reader.presses(Keys.ARROW_RIGHT)
    assert reader.browser.switch_to.active_element.text == "a blue cat"
    reader.presses("/", "goat")
    reader.waits(["r5"])
    reader.presses("j")  # a letter like any other while one types
    reader.waits([])


def test_what_strangers_say_is_text(reader):
    reader.opens("#" + f"row={quote(HOSTILE_ID, safe='')}")
    reader.until(lambda: reader.is_open)
    assert reader.one("dialog h2").text == HOSTILE
    assert reader.one("dialog .id").get_attribute("textContent") == HOSTILE_ID
    reader.presses(Keys.ESCAPE)
    reader.until(lambda: not reader.is_open)
    title = next(t for t in reader.all(".card .title") if t.text == HOSTILE)
    title.click()
    reader.until(lambda: reader.is_open)
    assert reader.one("dialog .id").get_attribute("textContent") == HOSTILE_ID
    assert "owned" not in reader.browser.title
    scripts = reader.browser.execute_script("return [...document.scripts].map((s) => s.src)")
    assert len(scripts) == 1 + 1 + 3
    assert not reader.all("img[src=x]")


def test_a_report_that_is_sent_away_has_its_small_pictures(browser, place, tmp_path: Path):
    there = shutil.copytree(place.removesuffix("/index.html"), tmp_path / "sent")
    reader = Reader(browser, f"{there}/index.html")
    reader.opens("#row=r0")
    reader.until(lambda: reader.is_open)
    loaded = "return arguments[0].naturalWidth"
    for image in reader.all("dialog img"):
        reader.until(lambda image=image: browser.execute_script(loaded, image))
    assert len(reader.all("dialog img")) == 2
    missing = browser.get_log("browser")
    assert all("ERR_FILE_NOT_FOUND" in entry["message"] for entry in missing)


def test_the_failures_lead_to_their_rows(reader):
    reader.opens()
    reader.one("#failures a[href^='#status']").click()
    reader.waits(["r5"])
    reader.one("#failures a[href^='#row']").click()
    reader.until(lambda: reader.is_open)
    assert reader.one("dialog h2").text == "a goat"
    assert "no memory <script>" in reader.one("dialog").text


def test_nothing_is_asked_of_the_network_and_much_is_named(reader):
    reader.opens("#view=slider")
    reader.until(lambda: reader.all(".card .compare"))
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert all(name.startswith("file:") for name in reader.browser.execute_script(script))
    for control in reader.all("input, select, button"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    assert all(i.get_attribute("alt") for i in reader.all("img"))
    assert reader.one("#count").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_its_window_and_follows_light_and_dark(reader, width):
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    reader.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    lightness = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        reader.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        reader.opens("#row=r0")
        reader.until(lambda: reader.is_open)
        for wide in ("html", "dialog"):
            script = f"return document.querySelector('{wide}').scrollWidth"
            assert reader.browser.execute_script(script) <= width
        colour = reader.one("body").value_of_css_property("background-color")
        lightness.append(int(colour.strip("rgba() ").split(",")[0]))
    assert lightness[0] > 200
    assert lightness[1] < 60


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of ten thousand rows."""
    folder = tmp_path_factory.mktemp("many")
    source(folder, "a.png", "teal")
    colours = ("red", "green", "blue", "gold")
    made = [
        {
            "row_id": f"n{n}",
            "image": "a.png",
            "prompt": f"picture {n} of many",
            "colour": colours[n % 4],
            "clip_similarity": (n * 7919 % MANY) / MANY,
        }
        for n in range(MANY)
    ]
    return write_report(written(folder, made, scored=True).uri)


def test_of_ten_thousand_rows_one_page_is_there(browser, many):
    reader = Reader(browser, many)
    reader.opens()
    reader.waits([f"n{n}" for n in range(A_PAGE)])
    assert reader.count == "1 to 24 of 10,000 rows."
    assert len(reader.all("img")) == 2 * A_PAGE
    assert {i.get_attribute("loading") for i in reader.all("img")} == {"lazy"}
    reader.one("[aria-label='Next page']").click()
    reader.waits([f"n{n}" for n in range(A_PAGE, 2 * A_PAGE)])
    jump = reader.one("[aria-label='Page, of 417']")
    jump.send_keys(Keys.CONTROL, "a", Keys.NULL, "417", Keys.ENTER)
    reader.waits([f"n{n}" for n in range(416 * A_PAGE, MANY)])
    assert not reader.one("[aria-label='Next page']").is_enabled()
    browser.back()
    reader.waits([f"n{n}" for n in range(A_PAGE, 2 * A_PAGE)])
    reader.chooses("sort", "CLIP, best first")
    best = sorted(range(MANY), key=lambda n: -(n * 7919 % MANY))
    reader.waits([f"n{n}" for n in best[:A_PAGE]])
    assert reader.one("[aria-label='Page, of 417']").get_attribute("value") == "1"
    reader.types("q", "picture 9999")
    reader.waits(["n9999"])
    assert len(reader.all("#cards > li")) == 1


def test_keys_go_on_to_the_next_page(browser, many):
    reader = Reader(browser, many)
    reader.opens()
    reader.waits([f"n{n}" for n in range(A_PAGE)])
    reader.all(".title")[-1].send_keys("j")
    reader.waits([f"n{n}" for n in range(A_PAGE, 2 * A_PAGE)])
    focused = reader.browser.switch_to.active_element
    assert focused.text == f"picture {A_PAGE} of many"
    focused.send_keys("k")
    reader.waits([f"n{n}" for n in range(A_PAGE)])


def test_outputs_stand_side_by_side(browser, tmp_path: Path):
    uris = []
    for name, colour, score in (
        ("plain", "navy", lambda n: n),
        ("better", "gold", lambda n: 9 - n),
    ):
        source(tmp_path / name, "a.png", "teal")
        made = [{**row, "colour": colour} for row in rows(score)]
        moved = tmp_path / "both" / name
        uris.append(written(tmp_path / name, made, scored=True, where=str(moved)).uri)
    reader = Reader(browser, write_report(*uris))
    reader.opens("#sort=clip_similarity:desc")
    reader.waits(["r0", "r2", "r3", HOSTILE_ID, "r1", "r5"])  # by the best of both
    assert len(reader.one(".card").find_elements(By.TAG_NAME, "img")) == 3
    reader.chooses("output", "plain")
    reader.waits([HOSTILE_ID, "r3", "r2", "r0", "r1", "r5"])
    reader.opens("#row=r0")
    reader.until(lambda: reader.is_open)
    heads = [head.text for head in reader.all("dialog thead th")]
    assert heads == ["plain", "better"]
    left, right = (Select(one) for one in reader.all("dialog .picks select"))
    left.select_by_visible_text("plain: copy")
    right.select_by_visible_text("better: copy")
    loaded = "return arguments[0].naturalWidth"
    images = reader.all("dialog .compare img")
    reader.until(lambda: all(browser.execute_script(loaded, image) for image in images))
    places = [image.get_attribute("src") for image in images]
    assert ["/plain/images/" in place for place in places] == [False, True]
    assert ["/better/images/" in place for place in places] == [True, False]
    assert len(reader.all(".plot circle")) == 4
    assert "better: sdedit" in reader.one(".plot").text


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of three outputs, of which the second lacks a row."""
    folder = tmp_path_factory.mktemp("compared")
    uris = []
    for name, colour in (("pnp", "navy"), ("sdedit-low", "gold"), ("copy", "red")):
        source(folder / name, "a.png", "teal")
        made = [{**row, "colour": colour, "method": name.split("-")[0]} for row in rows()]
        kept = [row for row in made if (name, row["row_id"]) != ("sdedit-low", "r1")]
        uris.append(written(folder / name, kept, scored=True, where=f"{folder}/all/{name}").uri)
    return write_report(*uris, place=f"{folder}/all/report")


def test_a_grid_has_a_line_for_each_row_and_a_column_for_each_output(browser, compared):
    reader = Reader(browser, compared)
    reader.opens()
    reader.waits(["r0", "r1", "r2", "r3", HOSTILE_ID, "r5"])
    assert reader.one("h1").text == "3 outputs compared"
    heads = [head.text for head in reader.all(".heads > span")]
    assert heads == ["guidance\nCLIP · structure distance", "pnp", "sdedit-low", "copy"]
    assert [cell.text for cell in reader.all("#runs .wide th[scope=row]")] == [
        *("pnp done", "sdedit-low done", "copy done"),
    ]
    lefts = [[e.rect["x"] for e in line.find_elements(By.XPATH, "./*")]
             for line in reader.all("#cards > li")]  # fmt: skip
    assert len(lefts) == 7
    assert all(line == lefts[0] for line in lefts)  # heads and cells stand in columns
    first, second, *_, last = reader.all(".line")
    assert [figure.text for figure in first.find_elements(By.TAG_NAME, "figure")] == ["0 · 0.1"] * 3
    shown = [figure.text for figure in second.find_elements(By.TAG_NAME, "figure")]
    assert shown == ["– · 0.1", "no row", "– · 0.1"]
    assert "OutOfMemory" in last.text
    assert not last.find_elements(By.CSS_SELECTOR, "figure img")
    first.find_elements(By.CSS_SELECTOR, "figure a")[1].click()
    reader.until(lambda: reader.is_open)
    assert reader.one("dialog h2").text == "a red cat"
    reader.presses(Keys.ESCAPE)
    reader.until(lambda: not reader.is_open)
    reader.chooses("view", "side by side")
    reader.until(lambda: not reader.all(".line"))
    assert "sdedit-low: sdedit" in reader.one(".card").text


def test_a_wide_grid_scrolls_by_itself_and_keeps_its_guidance_images(browser, compared):
    screen = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    reader = Reader(browser, compared)
    reader.opens()
    reader.until(lambda: reader.all(".line"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    grid = reader.one("#cards")
    assert browser.execute_script("return arguments[0].scrollWidth", grid) > 390
    before = [reader.one(f".line > :nth-child({n})").rect["x"] for n in (1, 2)]
    browser.execute_script("arguments[0].scrollLeft = 40", grid)
    after = [reader.one(f".line > :nth-child({n})").rect["x"] for n in (1, 2)]
    assert after == [before[0], before[1] - 40]
