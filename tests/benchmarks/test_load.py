"""What the clients of benchmarks/load.py find, one after the other, at an app whose scenes are made at once."""

import asyncio
import random

import pytest

pytest.importorskip('gradio', reason="needs gradio (pip install '.[app]')")

from PIL import Image

from benchmarks import load
from tests.app import serving

SERVE = (
  'from one4d_jax.app import server; '
  f"server.serve(port=0, upload_limit={load.LIMIT}, function='tests.app.producers:produce')"
)


@pytest.fixture(scope='module')
def address():
  with serving('-c', SERVE) as (_, address):
    yield address


def run(address: str, does) -> object:
  async def visit():
    async with load.Tab(address) as tab:
      return await does(tab)

  return asyncio.run(visit())


@pytest.mark.parametrize('name', ['mislabelled', 'announced', 'unannounced', 'gone', 'snoops', 'cancels'])
def test_clients_get_what_they_should(address, name):
  run(address, lambda tab: load.DEEDS[name][2](tab, random.Random(0)))


def test_a_request_cannot_name_a_picture_of_this_machine_as_its_upload(address, tmp_path):
  Image.new('RGB', (64, 48)).save(tmp_path / 'private.png')
  file = {'path': str(tmp_path / 'private.png'), 'orig_name': 'x.png', 'meta': {'_type': 'gradio.FileData'}}
  with pytest.raises(load.Wrong):
    run(address, lambda tab: tab.call('read', file))
  with pytest.raises(load.Wrong):
    run(address, lambda tab: tab.submit(load.Job('a room', None), file, task='image'))


def test_anothers_scene_is_noticed(address):
  job = load.Job('my own prompt', None)

  async def wrong(tab):
    await tab.submit(job)
    job.prompt = 'of another'
    await tab.collect(job)

  with pytest.raises(load.Wrong, match='the scene of another'):
    run(address, wrong)
