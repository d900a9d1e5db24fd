"""Videos in and out: files of PyAV, folders of frames, the verb `predict`."""

import builtins
import json
import sys

import drawn_checkpoint
import numpy as np
import pytest
import tiny_run
from PIL import Image

from maskrcnn_jax.cli import main as command
from maskrcnn_jax.datasets import images
from maskrcnn_jax.errors import UserError
from maskrcnn_jax.evaluation import coco_results
from maskrcnn_jax.inference import clips, video
from maskrcnn_jax.inference.predictor import Predictor
from maskrcnn_jax.inference.tracking import Tracker, TrackOptions

QUARTER_TURNS = [
  (a, b, c, d)
  for a, b, c, d in np.ndindex(3, 3, 3, 3)
  if abs((a - 1) * (d - 1)) + abs((b - 1) * (c - 1)) == 1
  and (abs(a - 1) + abs(d - 1)) * (abs(b - 1) + abs(c - 1)) == 0
]


@pytest.mark.parametrize('numbers', QUARTER_TURNS)
def test_pixels_are_turned_as_the_matrix_says(numbers):
  a, b, c, d = (x - 1 for x in numbers)
  pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
  # From the definition: (x, y) is shown at (a x + c y, b x + d y).
  places = {
    (a * x + c * y, b * x + d * y): pixels[y, x] for y, x in np.ndindex(2, 3)
  }
  columns, rows = (sorted({place[i] for place in places}) for i in (0, 1))
  expected = [[places[x, y] for x in columns] for y in rows]
  matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1], np.int32) << 16
  np.testing.assert_array_equal(video.turned(pixels, matrix), expected)


def test_there_are_eight_of_them():
  assert len(QUARTER_TURNS) == 8
  pixels = np.zeros((2, 3, 3), np.uint8)
  assert video.turned(pixels, None) is pixels


def test_a_missing_package_names_the_extra(monkeypatch):
  imported = builtins.__import__

  def fail(name, *args, **kwargs):
    if name == 'av':
      raise ImportError(name)
    return imported(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', fail)
  monkeypatch.delitem(sys.modules, 'av', raising=False)
  with pytest.raises(UserError) as info:
    video.import_av()
  assert info.value.wanted == 'maskrcnn-jax[video]'


def pan(number):
  """Frame of a camera that moves over a drawn picture, `[64, 96, 3]`."""
  rng = np.random.default_rng(0)
  wide = rng.integers(0, 256, (8, 24, 3), np.uint8)
  wide = np.asarray(Image.fromarray(wide).resize((192, 64)))
  return wide[:, 2 * number : 2 * number + 96]


def save(path, count=12, rotation=None, **options):
  """Writes frames of the pan, ten in a second."""
  av = pytest.importorskip('av')
  with av.open(str(path), 'w', **options) as container:
    stream = container.add_stream('mpeg4', rate=10)
    stream.height, stream.width, stream.pix_fmt = 64, 96, 'yuv420p'
    stream.bit_rate = 2_000_000
    if rotation is not None:
      stream.set_display_rotation(rotation)
    for number in range(count):
      frame = av.VideoFrame.from_ndarray(pan(number), format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def error_of(function):
  with pytest.raises(UserError) as info:
    function()
  return info.value


def close(pixels, expected):
  return np.abs(pixels.astype(int) - expected).mean() < 12  # It is lossy.


def test_frames_and_their_times(tmp_path):
  path = save(tmp_path / 'a.mp4')
  assert video.survey(path) == (12, 10)
  frames = list(video.read(path, every=5))
  assert [frame.number for frame in frames] == [0, 5, 10]
  np.testing.assert_allclose([x.seconds for x in frames], [0, 0.5, 1])
  for frame in frames:
    assert close(frame.pixels, pan(frame.number))
  assert not close(frames[0].pixels, pan(10))


def test_a_phone_held_upright(tmp_path):
  path = save(tmp_path / 'a.mp4', count=2, rotation=-90)
  frame = next(video.read(path))
  assert close(frame.pixels, np.rot90(pan(0), -1))  # Clockwise.


@pytest.mark.parametrize('ending', ['mkv', 'avi', 'mp4'])
def test_a_cut_file_is_named_with_its_frame(tmp_path, ending):
  options = {'movflags': 'faststart'} if ending == 'mp4' else {}
  whole = save(tmp_path / f'a.{ending}', 30, options=options)
  assert video.survey(whole)[0] == 30
  encoded = whole.read_bytes()
  path = tmp_path / f'cut.{ending}'
  path.write_bytes(encoded[: len(encoded) // 2])
  error = error_of(lambda: video.survey(path))
  assert error.path == str(path)
  assert 0 < error.item < 25


def test_other_files_are_named(tmp_path):
  av = pytest.importorskip('av')
  text = tmp_path / 'text.mp4'
  text.write_text('This is no video.\n' * 99)
  error = error_of(lambda: video.survey(text))
  assert (error.path, error.item) == (str(text), 0)
  sound = tmp_path / 'sound.mp4'
  with av.open(str(sound), 'w') as container:
    stream = container.add_stream('aac', rate=8000)
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 1024), np.float32), format='fltp', layout='mono'
    )
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  assert error_of(lambda: video.survey(sound)).path == str(sound)
  # A playlist could name any file or address.
  playlist = tmp_path / 'list.mp4'
  save(tmp_path / 'a.ts', 2, format='mpegts')
  playlist.write_text('#EXTM3U\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n')
  assert error_of(lambda: video.survey(playlist)).path == str(playlist)
  with pytest.raises(FileNotFoundError):
    video.survey(tmp_path / 'none.mp4')


def test_frames_over_the_budget_are_refused(tmp_path):
  path, before = save(tmp_path / 'a.mp4', 2), images.max_pixels()
  images.set_max_pixels(64 * 96 - 1)
  try:
    error = error_of(lambda: next(video.read(path)))
  finally:
    images.set_max_pixels(before)
  assert (error.path, error.item, error.given) == (str(path), 0, (64, 96))


def test_written_pictures_keep_their_times(tmp_path):
  pytest.importorskip('av')
  path, times = tmp_path / 'out.mp4', [0, 0.1, 0.35, 0.4]
  with video.written(path, 10) as file:
    for level, seconds in enumerate(times):
      file.add(np.full((33, 65, 3), 60 * level, np.uint8), seconds)
    assert not path.exists()
  frames = list(video.read(path))
  np.testing.assert_allclose([x.seconds for x in frames], times, atol=1e-4)
  for level, frame in enumerate(frames):
    assert frame.pixels.shape == (34, 66, 3)
    np.testing.assert_allclose(frame.pixels, 60 * level, atol=4)
  with pytest.raises(KeyboardInterrupt), video.written(path, 10) as file:
    file.add(np.zeros((32, 32, 3), np.uint8), 0)
    raise KeyboardInterrupt
  assert [x.name for x in tmp_path.iterdir()] == ['out.mp4']
  assert video.survey(path)[0] == 4  # As before.


def test_folders_are_clips_in_the_order_of_numbers(tmp_path):
  for folder in ('one', 'two'):
    (tmp_path / folder).mkdir()
  for number in (2, 10, 1):
    Image.fromarray(pan(number)).save(tmp_path / f'one/frame{number}.png')
  Image.fromarray(pan(0)).save(tmp_path / 'two/0.png')
  one, two = clips.find([tmp_path], tmp_path / 'out')
  assert (one.name, one.length, two.name, two.length) == ('one', 3, 'two', 1)
  frames = list(one.read(2))
  assert [one.file_name(x.number) for x in frames] == [
    'one/frame1.png',
    'one/frame10.png',
  ]
  np.testing.assert_array_equal(frames[1].pixels, pan(10))
  Image.fromarray(pan(0)[:30]).save(tmp_path / 'one/frame11.png')
  one = clips.find([tmp_path / 'one'], tmp_path / 'out')[0]
  error = error_of(lambda: list(one.read(1)))
  assert (error.item, error.given, error.wanted) == (3, (30, 96), (64, 96))
  error = error_of(lambda: clips.find(['a.mp4', tmp_path], tmp_path / 'out'))
  assert error.argument == 'images'


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  config = tiny_run.make_config('none', 'none')
  config.input.canvases, config.input.image_dtype = ((64, 96),), 'uint8'
  config.model.detections.max_detections = 10
  folder = tmp_path_factory.mktemp('run') / 'run'
  return drawn_checkpoint.write(folder, config)


@pytest.fixture(scope='module')
def predictor(workdir):
  return Predictor(workdir, batch_size=4)


def tracked(found, **options):
  """(image id, track id) of all tracks."""
  tracker = Tracker(TrackOptions(high_score=0.2, **options))
  for image_id, each in enumerate(found, 1):
    ids = tracker.update(each, (64, 96)).tolist()
    yield from ((image_id, x) for x in sorted(ids) if x)


def in_file(tracks):
  return [(x['image_id'], x['instance_id']) for x in tracks['annotations']]


def predict(workdir, output, *flags):
  argv = ['predict', f'--workdir={workdir}', f'--output={output}', *flags]
  return command.main([*argv, '--batch_size=4', '--compilation_cache='])


def read(path):
  return json.loads(path.read_text())


@pytest.mark.slow
def test_predict_of_a_video(workdir, predictor, tmp_path, capsys):
  path, output = save(tmp_path / 'pan.mp4', 14), tmp_path / 'out'
  flags = ['--images', str(path), '--every=2', '--track']
  flags += ['--min_score=0.2', '--save=mots,youtube_vis']
  assert predict(workdir, output, *flags) == 0
  files = {
    x.relative_to(output).as_posix() for x in output.rglob('*') if x.is_file()
  }
  assert files == {
    *('detections.json', 'images.json', 'tracks.json', 'youtube_vis.json'),
    *('mots/pan.txt', 'videos/pan.mp4', 'predict.json'),
  }
  assert read(output / 'predict.json')['complete']
  # Detections and ids are those of the same objects in Python.
  frames = list(video.read(path, 2))
  found = predictor([frame.pixels for frame in frames])
  results = [
    result
    for image_id, each in enumerate(found, 1)
    for result in coco_results.image_results(each, image_id, (64, 96))
  ]
  assert read(output / 'detections.json') == results
  tracks = read(output / 'tracks.json')
  expected = list(tracked(found, max_lost=5))
  assert len(expected) > 7
  assert in_file(tracks) == expected
  times = [image['time'] for image in tracks['images']]
  np.testing.assert_allclose(times, np.arange(7) / 5)
  assert [x['frame_number'] for x in tracks['images']] == [*range(0, 14, 2)]
  assert read(output / 'images.json')['videos'][0]['length'] == 7
  assert video.survey(output / 'videos/pan.mp4')[0] == 7
  # A broken file changes nothing, and the error names it.
  cut = tmp_path / 'cut.mp4'
  cut.write_bytes(path.read_bytes()[:3000])
  capsys.readouterr()
  assert predict(workdir, output, '--images', str(cut), '--track') == 2
  assert str(cut) in capsys.readouterr().err
  assert (output / 'tracks.json').exists()
  # One that breaks on the way leaves what says that it is not complete.
  broken = bytearray(path.read_bytes())
  broken[len(broken) // 4 : len(broken) // 2] = bytes(len(broken) // 4)
  path.write_bytes(broken)
  assert predict(workdir, output, '--images', str(path)) == 2
  assert not read(output / 'predict.json')['complete']
  left = [x.name for x in output.rglob('*') if x.is_file()]
  assert left == ['predict.json']


@pytest.mark.slow
def test_predict_of_a_folder_of_frames(workdir, predictor, tmp_path):
  pytest.importorskip('av')
  (tmp_path / 'pan').mkdir()
  for number in range(5):
    Image.fromarray(pan(number)).save(tmp_path / f'pan/{number}.png')
  output = tmp_path / 'out'
  flags = ['--images', str(tmp_path / 'pan'), '--track=masks']
  assert predict(workdir, output, *flags, '--min_score=0.2') == 0
  tracks = read(output / 'tracks.json')
  assert [x['file_name'] for x in tracks['images']] == [
    f'{number}.png' for number in range(5)
  ]
  found = predictor([pan(number) for number in range(5)])
  assert in_file(tracks) == list(tracked(found, overlap='masks'))
  # Wrong arguments, before a model is read.
  for wrong in (['--save=coco'], ['--annotations=x.json']):
    assert predict('none', tmp_path / 'no', *flags, *wrong) == 2
  assert not (tmp_path / 'no').exists()
