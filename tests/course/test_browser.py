"""A reader's view: a notebook in a real JupyterLab, in a real (headless) browser.

Needs chromium and chromedriver. Without them the tests are skipped, except in continuous integration (``CI`` set),
where they fail.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from icrl_utils.tools.build_notebooks import build, sources, write_notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("browser")]

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1600",
)  # fmt: skip
TOKEN = "browser-test"
PATIENCE = 600  # seconds; only a broken page, or a very busy machine, waits so long

TRIVIAL = """\
# %% [markdown]
# # 99 · Trivial

# %%
import ipywidgets
import matplotlib.pyplot as plt

slider, output = ipywidgets.IntSlider(value=3, min=1, max=9), ipywidgets.Output()


def draw(change=None):
    with output:
        output.clear_output(wait=True)
        plt.plot(range(slider.value))
        plt.show()


slider.observe(draw, "value")
draw()
ipywidgets.VBox([slider, output])
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        missing = "needs chromium and chromedriver (Debian: apt install chromium chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own (no settings of the user); yields its folder of notebooks and its address."""
    folder = tmp_path_factory.mktemp("lab")
    settings = folder / "config" / "labconfig" / "page_config.json"
    settings.parent.mkdir(parents=True)
    # A first start asks whether to fetch news, and the answer box covers the page.
    settings.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    environment = {**os.environ, "ICRL_PROFILE": "smoke", "JUPYTER_CONFIG_DIR": str(folder / "config")}
    for name in ("JUPYTER_DATA_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"):
        environment[name] = str(folder / name)
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={notebooks}",
        "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    log = folder / "lab.log"
    with log.open("w") as stream:
        server = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(PATIENCE * 2):
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5)
                break
            except (urllib.error.URLError, TimeoutError):
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
        else:
            pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")
        yield notebooks, address
    finally:
        server.terminate()
        server.wait(timeout=60)


READY = "return !!window.jupyterapp?.shell?.currentWidget?.sessionContext?.isReady"
# What every code cell shows: [its execution count, its error or null]
PROGRESS = """
return [...window.jupyterapp.shell.currentWidget.content.model.cells]
    .filter(cell => cell.type === "code")
    .map(cell => [cell.executionCount, cell.toJSON().outputs.find(output => output.output_type === "error")?.evalue])
"""


def run_all(browser, lab, notebook, name: str) -> None:
    """Open ``notebook`` in JupyterLab and run all its cells, as a reader would. Fails with the error of a cell."""
    folder, address = lab
    write_notebook(notebook, folder / f"{name}.ipynb")
    browser.get(f"{address}/lab/tree/{name}.ipynb?token={TOKEN}&reset")
    waiting = WebDriverWait(browser, PATIENCE)
    waiting.until(lambda page: page.execute_script(READY))
    browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")

    def done(page):
        cells = page.execute_script(PROGRESS)
        assert not any(error for _, error in cells), cells
        return all(count for count, _ in cells)

    waiting.until(done)


def figures(browser, inside: str) -> list[str]:
    """The pictures, as data addresses, in the widget that the CSS selector names."""
    return [image.get_attribute("src") for image in browser.find_elements(By.CSS_SELECTOR, f"{inside} img")]


def wait_for_figure(browser, inside: str, other_than: str | None = None) -> str:
    """The first picture there, once there is one that differs from ``other_than``."""

    def new_figure(page):
        return next((figure for figure in figures(page, inside) if figure != other_than), None)

    return WebDriverWait(browser, PATIENCE, ignored_exceptions=(Exception,)).until(new_figure)


def test_a_slider_redraws_its_figure(browser, lab, tmp_path):
    """The machinery, on a notebook that can hardly fail: if this is red, look at Jupyter before the widgets."""
    source = tmp_path / "99_trivial.py"
    source.write_text(TRIVIAL, encoding="utf-8")
    run_all(browser, lab, build(source), "99_trivial")
    before = wait_for_figure(browser, ".jupyter-widgets")
    browser.find_element(By.CSS_SELECTOR, ".jupyter-widgets .noUi-handle").send_keys(Keys.ARROW_RIGHT)
    assert wait_for_figure(browser, ".jupyter-widgets", other_than=before).startswith("data:image/png")


def test_the_sliders_of_notebook_03(browser, lab):
    (source,) = sources(["03"])
    run_all(browser, lab, build(source), source.stem)
    before = wait_for_figure(browser, ".jupyter-widgets")
    browser.find_element(By.CSS_SELECTOR, ".jupyter-widgets .noUi-handle").send_keys(Keys.ARROW_RIGHT)
    assert wait_for_figure(browser, ".jupyter-widgets", other_than=before).startswith("data:image/png")


def test_the_first_slider_of_notebook_06(browser, lab):
    (source,) = sources(["06"])
    run_all(browser, lab, build(source), source.stem)
    before = wait_for_figure(browser, ".jupyter-widgets")
    handle = browser.find_element(By.CSS_SELECTOR, ".jupyter-widgets .noUi-handle")
    handle.send_keys(Keys.ARROW_RIGHT)
    assert wait_for_figure(browser, ".jupyter-widgets", other_than=before).startswith("data:image/png")
