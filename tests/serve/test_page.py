"""The page, as a person uses it, in headless Chromium."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from distrib.models import SasRecConfig
from distrib.serve.user_store import StoredUsers
from distrib.vocabulary import LogFacts
from tests.serve.conftest import history, served, write_run

webdriver = pytest.importorskip("selenium.webdriver")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

pytestmark = pytest.mark.processes

TOKEN = "page-token"
PHONE = {"width": 320, "height": 700, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture
def run(small, tmp_path):
    return write_run(tmp_path / "run", small, scale=0.4)


@contextmanager
def answering(server):
    """Serve an application on a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(server.app, port=port, log_level="error"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture
def url(run, tmp_path):
    titles = tmp_path / "titles.csv"
    lines = "\n".join(f'{1000 - n},"Film {n}"' for n in range(50))
    titles.write_text(f"item,title\n{lines}\n")
    server = served({"conv": run}, titles=str(titles), token=TOKEN)
    with answering(server) as address:
        yield address, server


class Person:
    """Looks at the page and uses it."""

    def __init__(self, browser):
        self.browser = browser
        self.wait = WebDriverWait(browser, 10)

    def all_of(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector):  # at one moment: the page may be drawn again between two looks
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
        return [text.split("\n")[0] for text in self.browser.execute_script(script, selector)]

    def sees(self, selector, *texts):
        self.wait.until(lambda _: self.texts(selector)[: len(texts)] == list(texts))

    def gives_the_token(self):
        self.wait.until(lambda _: self.browser.find_element(By.ID, "token").is_displayed())
        assert "missing or invalid bearer token" in self.browser.find_element(By.ID, "fault").text
        self.browser.find_element(By.ID, "token").send_keys(TOKEN + "\t")
        self.wait.until(lambda _: len(self.all_of("#found button")) == 8)
        assert not self.browser.find_element(By.ID, "fault").is_displayed()

    def finds(self, title):
        query = self.browser.find_element(By.ID, "query")
        query.clear()
        query.send_keys(title)
        self.sees("#found button span", title)
        self.browser.find_element(By.CSS_SELECTOR, "#found button").click()

    def rates(self, title, rating):
        self.finds(title)
        self.wait.until(lambda _: title in self.texts("#history .row span"))
        Select(self.all_of("#history select")[-1]).select_by_value(f"{rating:g}")


def test_items_are_picked_and_rated_and_recommendations_follow(browser, url, small, tmp_path):
    address, server = url
    person = Person(browser)
    browser.get(address)
    person.gives_the_token()
    known = history(small, 3)
    for item, rating in zip(known["items"], known["ratings"], strict=True):
        person.rates(f"Film {1000 - item}", rating)

    scorer = server.hosts["conv"].loaded.scorer
    direct = scorer.recommend(small.users([3]), small.users([3]), 10)
    person.sees("#list .name", *(f"Film {item}" for item in direct.item_BK[0].tolist()))
    assert f"rated {direct.prediction.rating_BI[0, 0]:.2f}" in person.texts("#list .answer")[0]
    assert all(text.startswith("moved by Film") for text in person.texts("#list .reasons"))
    person.wait.until(lambda _: len(person.all_of("#map circle.listed")) == 10)
    assert len(person.all_of("#map circle.seen")) == len(known["items"])
    assert len(person.all_of("#map circle.all")) == 50 - len(known["items"])


def test_a_known_user_is_loaded_by_id(browser, world):
    run, data = world
    with answering(served({"m": run}, data.prepared)) as address:
        person = Person(browser)
        browser.get(address)
        person.wait.until(lambda _: person.all_of("#found button"))
        browser.find_element(By.ID, "user").send_keys("3\n")
        known, _ = StoredUsers(data.prepared, 1).find("3")
        person.sees("#history .row span", *map(str, known.items))
        rated = [
            Select(choice).first_selected_option.text for choice in person.all_of("select")[1:]
        ]
        assert [float(text) for text in rated] == known.ratings
        person.wait.until(lambda _: len(person.all_of("#list .name")) == 10)
        browser.find_element(By.ID, "user").send_keys("999999\n")
        person.sees("#fault", "no such user in the prepared data: '3999999'")


class TestRepeats:
    @pytest.fixture
    def run(self, small, tmp_path):
        config = SasRecConfig(latent_width=8, max_length=10)
        facts = LogFacts(has_repeats=True)
        return write_run(tmp_path / "run", small, config, levels=(1.0,), facts=facts)

    def test_an_item_can_be_picked_again(self, browser, url):
        address, _ = url
        person = Person(browser)
        browser.get(address)
        person.gives_the_token()
        for title in ("Film 5", "Film 6", "Film 5"):
            rows = len(person.all_of("#history .row"))
            person.finds(title)
            person.wait.until(lambda _, rows=rows: len(person.all_of("#history .row")) == rows + 1)
        assert person.texts("#history .row span") == ["Film 5", "Film 6", "Film 5"]


def test_the_api_page_describes_every_request(browser, url):
    address, _ = url
    person = Person(browser)
    browser.get(f"{address}/docs")
    person.wait.until(lambda _: len(person.all_of("section h2 .verb")) == 11)
    assert "/v1/models/{model}/recommendations" in person.texts("section h2 code")
    for page in ("docs", ""):
        browser.get(f"{address}/{page}")
        person.wait.until(lambda _: person.all_of("section h2"))
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        time.sleep(0.5)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 320
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    faults = [entry for entry in browser.get_log("browser") if entry["source"] != "network"]
    assert faults == []
