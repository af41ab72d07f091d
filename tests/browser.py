"""Headless Chromium for tests: pages that draw with WebGL in software, and that fail a test which leaves errors.

A folder of tests takes the fixtures by one line in its ``conftest.py``: ``from tests.browser import browser, page``.
"""

import contextlib
import io
import shutil

import numpy as np
import pytest
from PIL import Image

# Chromium without a GPU: SwiftShader draws, and is allowed to.
FLAGS = (
  '--no-sandbox',
  '--use-gl=angle',
  '--use-angle=swiftshader',
  '--enable-unsafe-swiftshader',
  '--ignore-gpu-blocklist',
)


class Messages(list):
  """What a page told its console as warning or error, and what it threw: lines ``kind: text``."""

  def unexpected(self, *tolerated: str) -> list[str]:
    """Those that hold none of the ``tolerated`` words."""
    return [line for line in self if not any(words in line for words in tolerated)]


@pytest.fixture(scope='module')
def browser():
  """One Chromium for a test module; skips with the reason where there is none."""
  sync_api = pytest.importorskip('playwright.sync_api', reason='needs playwright (pip install -e .[dev])')
  chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
  if chromium is None:
    pytest.skip('needs Chromium on the PATH (apt-get install chromium)')
  with contextlib.ExitStack() as stack:
    playwright = stack.enter_context(sync_api.sync_playwright())
    yield stack.enter_context(contextlib.closing(playwright.chromium.launch(executable_path=chromium, args=FLAGS)))


@pytest.fixture
def page(browser):
  """A fresh page of 1200 x 800 whose ``messages`` (``Messages``) hold warnings and errors."""
  context = browser.new_context(viewport={'width': 1200, 'height': 800}, accept_downloads=True)
  with contextlib.closing(context):
    context.set_default_timeout(120_000)  # a busy machine without a GPU takes its time
    opened = context.new_page()
    opened.messages = Messages()
    opened.on('console', lambda m: m.type in ('warning', 'error') and opened.messages.append(f'{m.type}: {m.text}'))
    opened.on('pageerror', lambda error: opened.messages.append(f'exception: {error}'))
    yield opened


def block_network(page) -> list[str]:
  """Refuses every request but of files; returns the list that refused addresses go into."""
  refused = []

  def decide(route):
    if route.request.url.startswith(('file:', 'data:', 'blob:')):
      return route.continue_()
    refused.append(route.request.url)
    return route.abort()

  page.context.route('**/*', decide)
  page.context.set_offline(True)
  return refused


def colours(png: bytes) -> int:
  """Number of different colours of a screenshot, in steps of 16: a blank one has few."""
  picture = np.asarray(Image.open(io.BytesIO(png)).convert('RGB')) // 16
  return len(np.unique(picture.reshape(-1, 3), axis=0))
