"""The page in headless Chromium: from an upload to a scene, and what goes wrong on the way."""

import io
import json
import os
import re
import signal
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('gradio', reason="needs gradio (pip install '.[app]')")

from one4d_jax.request import EXAMPLE
from tests.app import children, eventually, gone, serving
from tests.browser import colours

# Serves scenes made at once, remembers one page, and notes every attempt of the process to reach another machine.
CODE = """
import sys
def note(event, args):
  if event in ('socket.connect', 'socket.getaddrinfo') and '127.0.0.1' not in str(args):
    open({log!r}, 'a').write(f'{{event}} {{args}}\\n')
sys.addaudithook(note)
from one4d_jax.app import server
server._SESSIONS = 1
server.serve(port=0, upload_limit=1, function='tests.app.producers:produce')
"""


@pytest.fixture(scope='module')
def address(tmp_path_factory):
  """Of a server that has to live through all tests, and to contact nobody."""
  log = tmp_path_factory.mktemp('app') / 'contacts'
  log.touch()
  with serving('-c', CODE.format(log=str(log))) as (process, address):
    yield address
    assert process.poll() is None, 'the server outlives everything'
    assert log.read_text() == ''


@pytest.fixture
def opened(page, address):
  """The page, ready; fails a test that leaves errors or asks anyone but the server."""
  asked = []
  page.on('request', lambda request: asked.append(request.url))
  page.goto(address)
  page.wait_for_selector('#make')
  page.wait_for_function("document.querySelector('#queue').innerText.length > 0")
  yield page
  foreign = [url for url in asked if not url.startswith((address, 'data:', 'blob:'))]
  assert not foreign
  assert not [line for line in page.messages if not line.startswith('warning')]


def ask(page, prompt: str) -> None:
  page.fill('#prompt textarea', prompt)
  page.click('#make')


def wait_for(page, selector: str, text: str) -> str:
  page.wait_for_function(
    '([selector, text]) => (document.querySelector(selector)?.innerText ?? "").includes(text)', arg=[selector, text]
  )
  return page.inner_text(selector)


def middle(png: bytes) -> list[int]:
  picture = np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))
  return picture[picture.shape[0] // 2, picture.shape[1] // 2].tolist()


def test_from_an_upload_to_a_scene_and_its_download(opened, tmp_path):
  opened.set_input_files('#file input[type=file]', str(EXAMPLE))
  assert 'Video, 17 frames, 256x256, 8 fps' in wait_for(opened, '#card', 'Video')
  assert opened.inner_text('#task').split('\n')[1:] == ['Image (first frame)', 'Sparse frames', 'Video']
  assert opened.is_checked('#task input[value=video]')
  opened.check('#task input[value=sparse]')
  opened.wait_for_selector('#share')
  ask(opened, 'a room')
  wait_for(opened, '#status', 'Done')
  frame = opened.wait_for_selector('#scene iframe')
  eventually(lambda: middle(frame.screenshot()) == [220, 40, 40])
  facts = opened.inner_text('#scene')
  for text in ('a room', '3 of 64x48', '50 ± 0.5 pixels', '0.2 mean, 0.3 worst frame', '90%', 'a <b>note</b>', 'doubt'):
    assert text in facts
  assert opened.evaluate("document.querySelector('#scene img').naturalWidth") == 64
  with opened.expect_download() as download:
    opened.click('#scene a[download]')
  with zipfile.ZipFile(download.value.path()) as stored:
    assert 'scene/scene.html' in stored.namelist() and stored.testzip() is None
  assert opened.is_enabled('#make') and not opened.is_visible('#cancel')


def test_the_example_and_its_prompt(opened):
  opened.click('#example')
  wait_for(opened, '#card', 'Video')
  assert opened.input_value('#prompt textarea') == EXAMPLE.with_suffix('.txt').read_text().strip()


def test_a_quick_hand_is_not_undone_by_what_the_page_does_as_it_opens(page, address, tmp_path):
  gate = tmp_path / 'gate'
  page.goto(address)
  ask(page, f'wait {gate}')  # at once
  try:
    wait_for(page, '#status', 'Sampling 2/4')
    page.wait_for_timeout(1500)
    assert page.is_disabled('#make') and page.is_visible('#cancel')
  finally:
    gate.touch()  # the queue is the next test's too
  wait_for(page, '#status', 'Done')
  page.wait_for_selector('#scene iframe')


def test_progress_and_cancel(opened, tmp_path):
  ask(opened, f'wait {tmp_path / "never"}')
  assert re.search(r'Sampling 2/4, about \d+ s left', wait_for(opened, '#status', 'about'))
  assert opened.evaluate("document.querySelector('#status progress').value") == 2
  opened.wait_for_selector('#make:disabled')
  opened.click('#cancel')
  wait_for(opened, '#status', 'Cancelled')
  opened.wait_for_selector('#make:enabled')
  ask(opened, 'again')
  wait_for(opened, '#status', 'Done')


@pytest.mark.parametrize(
  ('word', 'message'), [('segfault', 'its process was ended by SIGSEGV'), ('refuse', 'the input is no <b>good</b>')]
)
def test_a_job_that_fails_says_why_and_the_next_one_works(opened, word, message):
  ask(opened, word)
  wait_for(opened, '#status', f'Failed: {message}')
  opened.wait_for_selector('#make:enabled')
  ask(opened, 'good')
  wait_for(opened, '#status', 'Done')


def test_uploads_that_cannot_be_used(opened, tmp_path):
  fake, large = tmp_path / '<b>fake<b>.mp4', tmp_path / 'large.mp4'
  fake.write_text('not a film')
  opened.set_input_files('#file input[type=file]', str(fake))
  wait_for(opened, '#card', '.mp4 is neither an image nor a video')
  assert not opened.query_selector('#card b')
  opened.click('#make')
  wait_for(opened, '#status', 'is neither an image nor a video')
  assert opened.is_enabled('#make')
  opened.click('#file button[aria-label=Clear]')
  wait_for(opened, '#card', 'No file')
  large.write_bytes(bytes(2**20 + 1))
  opened.set_input_files('#file input[type=file]', str(large))
  wait_for(opened, 'body', 'exceed the maximum allowed size')
  opened.click('#make')
  wait_for(opened, '#status', 'nothing to go by')


def test_what_people_type_is_shown_and_not_run(opened):
  text = '<img src=x onerror=alert(1)><script>alert(2)</script> ${7*7} {{7*7}} &amp;'
  opened.on('dialog', lambda dialog: pytest.fail(dialog.message))
  ask(opened, text)
  wait_for(opened, '#status', 'Done')
  assert text in wait_for(opened, '#scene', 'prompt')


def test_clients_see_the_queue_and_not_each_other(opened, browser, address, tmp_path):
  gate = tmp_path / 'gate'
  ask(opened, f'wait {gate}')
  wait_for(opened, '#status', 'Sampling 2/4')
  other = browser.new_context().new_page()
  other.goto(address)
  assert 'Now: sampling 2/4' in wait_for(other, '#queue', 'Waiting: 0')
  ask(other, 'second')
  wait_for(other, '#status', 'Position 1 of 1 in the queue')
  assert 'Waiting: 1' in wait_for(opened, '#queue', 'Waiting: 1')
  assert str(gate) not in other.content()
  gate.touch()
  wait_for(opened, '#status', 'Done')
  wait_for(other, '#status', 'Done')
  mine, theirs = (page.wait_for_selector('#scene iframe').get_attribute('src') for page in (opened, other))
  assert mine != theirs and mine not in other.content() and theirs not in opened.content()
  other.context.close()


def test_a_page_that_was_closed_finds_its_scene_again(page, browser, address, tmp_path):
  gate = tmp_path / 'gate'
  page.goto(address)
  ask(page, f'wait {gate}')
  wait_for(page, '#status', 'Sampling 2/4')
  page.goto('about:blank')
  page.goto(address)
  wait_for(page, '#status', 'Sampling 2/4')
  page.wait_for_selector('#make:disabled')
  assert page.is_visible('#cancel')
  gate.touch()
  wait_for(page, '#status', 'Done')
  src = page.wait_for_selector('#scene iframe').get_attribute('src')
  page.reload()
  assert page.wait_for_selector('#scene iframe').get_attribute('src') == src
  stranger = browser.new_context().new_page()
  stranger.goto(address)
  wait_for(stranger, '#queue', 'Nothing is running')
  assert not stranger.query_selector('#scene iframe')
  stranger.context.close()


@pytest.mark.full
def test_the_command_makes_a_scene_of_the_example_with_the_embedded_model(page, tmp_path):
  """The whole of it, once: real networks, real files, Ctrl-C."""
  with serving('-m', 'one4d_jax.view', '--app', '--port', '0', '--jobs', str(tmp_path)) as (process, address):
    page.goto(address)
    page.set_default_timeout(600_000)
    page.click('#example')
    wait_for(page, '#card', 'Video')
    page.click('#settings button')
    page.wait_for_selector('#steps input')
    page.wait_for_timeout(2000)  # gradio makes the fields as they unfold, and forgets what a faster hand wrote
    page.fill('#steps input', '3')
    page.press('#steps input', 'Tab')
    page.wait_for_timeout(500)
    page.click('#make')
    wait_for(page, '#status', 'Done')
    frame = page.wait_for_selector('#scene iframe')
    eventually(lambda: colours(frame.screenshot()) > 60, seconds=180)
    assert '17 of 64x64' in page.inner_text('#scene')
    (scene,) = tmp_path.glob('*/scene')
    run = json.loads((scene / 'run.json').read_text())
    assert run['sampling']['steps'] == 3 and run['task'] == 'video' and run['input']['source']['path'] == 'input'
    assert not [line for line in page.messages if not line.startswith('warning')]
    started = children(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
  eventually(lambda: all(map(gone, started)))
  assert scene.is_dir() and sorted(os.listdir(tmp_path)) == [scene.parent.name]
