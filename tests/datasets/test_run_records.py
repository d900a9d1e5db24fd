"""Records of a run: prepared once, used again, never of other data."""

import dataclasses
import json
import pathlib
import shutil

import label_sets
import labelme_set
import numpy as np
import pytest
from PIL import Image

from maskrcnn_jax import files
from maskrcnn_jax.datasets import (
  categories,
  prepare,
  record_index,
  run_records,
)
from maskrcnn_jax.datasets.doctor import check
from maskrcnn_jax.datasets.findings import InvalidDataError
from maskrcnn_jax.datasets.formats import writers
from maskrcnn_jax.datasets.run_data import RunData
from maskrcnn_jax.errors import UserError


def make_data(folder, **options):
  """A set of ten images of LabelMe, as a command names it."""
  photos, labels = labelme_set.write(folder)
  return RunData(str(photos), str(labels), num_workers=1, **options)


@pytest.fixture(name='made', scope='module')
def fixture_made(tmp_path_factory):
  """Data and their prepared records, not to be changed."""
  folder = tmp_path_factory.mktemp('made')
  data = make_data(folder)
  return data, folder / 'run', run_records.prepare_all(folder / 'run', data)


@pytest.fixture
def copied(made, tmp_path):
  """The same, to be changed."""
  data, workdir, _ = made
  shutil.copytree(workdir, tmp_path / 'run')
  paths = {}
  for name in ('images', 'annotations'):
    paths[name] = str(tmp_path / name)
    shutil.copytree(getattr(data, name), paths[name])
  return dataclasses.replace(data, **paths), tmp_path / 'run'


def image_ids(workdir, part):
  index = record_index.index_records(run_records.pattern(workdir, part))
  return index.image_ids.tolist()


def test_the_split_is_written_and_kept(made):
  data, workdir, text = made
  folder = workdir / 'records'
  split = json.loads((folder / 'split.json').read_text())
  assert (split['val_share'], split['val_seed']) == (0.2, 0)
  parts = {x: list(map(int, split[x])) for x in ('train', 'val')}
  assert (len(parts['train']), len(parts['val'])) == (8, 2)
  assert sorted([*parts['train'], *parts['val']]) == list(range(1, 11))
  names = split['train'] | split['val']
  assert names == {str(i): f'{i - 1:02d}.png' for i in range(1, 11)}
  for part, ids in parts.items():
    assert image_ids(workdir, part) == ids
    content = json.loads((folder / f'instances_{part}.json').read_text())
    assert [x['id'] for x in content['images']] == ids
    assert {x['image_id'] for x in content['annotations']} == {*ids}
  found = run_records.check(workdir, data)
  assert found.num_images == {'train': 8, 'val': 2}
  # What was read and skipped is reported once, with the final paths.
  assert f'{folder}/train-00000-of-00001.tfrecord' in text
  assert text.count('numbered_classes') == 1
  assert 'unfinished' not in text


def test_records_are_those_of_prepare(made, tmp_path):
  data, workdir, _ = made
  for part in ('train', 'val'):
    prepare.prepare(
      *(data.images, data.annotations, tmp_path / part),
      image_ids=image_ids(workdir, part),
      num_workers=1,
    )
    name = f'{part}-00000-of-00001.tfrecord'
    expected = (tmp_path / name).read_bytes()
    assert (workdir / 'records' / name).read_bytes() == expected


def test_the_same_data_give_the_same_records(made, tmp_path):
  data, workdir, _ = made
  run_records.prepare_all(tmp_path / 'other', data)
  for path in (workdir / 'records').iterdir():
    if path.suffix in ('.tfrecord', '.json') and path.stem != 'prepared':
      other = tmp_path / 'other' / 'records' / path.name
      assert other.read_bytes() == path.read_bytes(), path


def test_copies_of_the_data_are_the_same_data(copied):
  data, workdir = copied
  assert run_records.check(workdir, data).num_images['train'] == 8


@pytest.mark.parametrize('name', label_sets.MAKERS)
def test_labels_of_every_format_are_taken(name, tmp_path):
  labels = label_sets.make(name, tmp_path / 'data')
  is_numbered = name in ('instance_png', 'object_png')
  data = RunData(
    *(str(tmp_path / 'data' / 'images'), str(labels)),
    classes='cat,dog' if is_numbered else None,
    val_share=0,
    num_workers=1,
  )
  run_records.prepare_all(tmp_path / 'run', data)
  found = run_records.check(tmp_path / 'run', data)
  assert found.inputs['train'].data_format == name
  classes = categories.read_from_records(
    run_records.pattern(tmp_path / 'run', 'train')
  )
  assert len(classes) == 2


def change_image(data):
  path = pathlib.Path(data.images, '03.png')
  Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)
  return f'{path} has changed'


def add_image(data):
  path = pathlib.Path(data.images, 'new.png')
  shutil.copy(pathlib.Path(data.images, '03.png'), path)
  return f'{path} is new'


def change_label(data):
  path = pathlib.Path(data.annotations, '03.json')
  path.write_text(path.read_text().replace('dog', 'cow'))
  return f'{path} has changed'


def remove_label(data):
  path = pathlib.Path(data.annotations, '03.json')
  path.unlink()
  return f'{path} is gone'


@pytest.mark.parametrize(
  'flag, change',
  [
    ('--images', change_image),
    ('--images', add_image),
    ('--annotations', change_label),
    ('--annotations', remove_label),
  ],
)
def test_changed_data_are_named(copied, flag, change):
  data, workdir = copied
  line = change(data)
  with pytest.raises(UserError) as error:
    run_records.check(workdir, data)
  assert (error.value.argument, error.value.given) == (flag, [line])
  assert error.value.path == str(workdir / 'records')
  assert line in str(error.value)
  # The records are as they were.
  assert run_records.check(workdir, None).num_images == {'train': 8, 'val': 2}


@pytest.mark.parametrize(
  'flag, options',
  [
    ('--val_share', {'val_share': 0.3}),
    ('--val_share', {'val_share': 0}),
    ('--val_seed', {'val_seed': 1}),
    ('--format', {'data_format': 'labelme'}),
    ('--classes', {'classes': 'dog,cat'}),
    ('--drop_outside', {'drop_outside': True}),
    ('--exif', {'exif': 'stored'}),
    ('--value_range', {'value_range': (0, 9)}),
  ],
)
def test_other_options_are_named(made, flag, options):
  data, workdir, _ = made
  with pytest.raises(UserError) as error:
    run_records.check(workdir, dataclasses.replace(data, **options))
  assert error.value.argument == flag
  assert flag in error.value.given[0]


def test_options_of_the_machine_do_not_count(made):
  data, workdir, _ = made
  run_records.check(workdir, dataclasses.replace(data, num_workers=7))


def test_validation_data_count_too(tmp_path):
  photos, labels = labelme_set.write(tmp_path / 'val', 3, seed=1)
  data = make_data(
    tmp_path / 'train',
    val_images=str(photos),
    val_annotations=str(labels),
  )
  workdir = tmp_path / 'run'
  run_records.prepare_all(workdir, data)
  assert run_records.check(workdir, data).num_images == {'train': 10, 'val': 3}
  assert not (workdir / 'records' / 'split.json').exists()
  (labels / '01.json').unlink()
  with pytest.raises(UserError) as error:
    run_records.check(workdir, data)
  assert error.value.argument == '--val_annotations'
  assert error.value.given == [f'{labels}/01.json is gone']


def test_images_to_train_and_to_validate_on_are_noted(made, tmp_path):
  data = dataclasses.replace(made[0], val_annotations=made[0].annotations)
  assert '10 image_in_both' in run_records.prepare_all(tmp_path / 'run', data)
  assert 'image_in_both' not in made[2]


def test_validation_classes_are_numbered_as_those_of_training(tmp_path):
  # In alphabetical order `dog` alone would be class 1.
  photos, labels = labelme_set.write(tmp_path / 'val', 3, names=('dog', 'eel'))
  data = make_data(
    tmp_path / 'train',
    val_images=str(photos),
    val_annotations=str(labels),
  )
  text = run_records.prepare_all(tmp_path / 'run', data)
  names = [
    categories.names_of(
      categories.read_from_records(run_records.pattern(tmp_path / 'run', part))
    )
    for part in ('train', 'val')
  ]
  assert names == [{1: 'cat', 2: 'dog'}, {2: 'dog'}]
  assert '1 unlisted_class (skipped)' in text
  run_records.check(tmp_path / 'run', data)
  # `check` numbers them alike.
  report = check.check(
    (data.images, data.annotations), (photos, labels), num_workers=1
  )
  kinds = report.by_kind()
  assert not {'class_name_differs', 'class_not_in_train'} & kinds.keys()
  assert len(kinds['unlisted_class']) == 1
  assert [x.dataset.class_names for x in report.splits] == [names[0]] * 2


def test_numbers_in_validation_labels_stay(tmp_path):
  """Those of YOLO mean the names of its own list, whatever was trained."""
  photos, labels = labelme_set.write(tmp_path / 'val', 2)
  yolo = tmp_path / 'val' / 'yolo'
  writers.write(photos, labels, yolo, 'yolo', num_workers=1)
  names = (yolo / 'classes.txt').read_text().split()
  (yolo / 'classes.txt').write_text('\n'.join(reversed(names)))
  data = make_data(
    tmp_path / 'train', val_images=str(photos), val_annotations=str(yolo)
  )
  run_records.prepare_all(tmp_path / 'run', data)
  found = [
    categories.names_of(
      categories.read_from_records(run_records.pattern(tmp_path / 'run', part))
    )
    for part in ('train', 'val')
  ]
  assert found == [{1: 'cat', 2: 'dog'}, {1: 'dog', 2: 'cat'}]


def test_the_validation_set_may_have_another_format(tmp_path):
  photos, labels = labelme_set.write(tmp_path / 'val', 4)
  coco = tmp_path / 'val.json'
  writers.write(photos, labels, coco, 'coco', num_workers=1)
  data = make_data(
    tmp_path / 'train', val_images=str(photos), val_annotations=str(coco)
  )
  run_records.prepare_all(tmp_path / 'run', data)
  found = run_records.check(tmp_path / 'run', data)
  formats = {part: x.data_format for part, x in found.inputs.items()}
  assert formats == {'train': 'labelme', 'val': 'coco'}


def write_wide(folder, high):
  """Two images of 16 bits, of values up to `high`, with a label each."""
  photos, labels = labelme_set.write(folder, 2)
  for path in photos.iterdir():
    ramp = np.linspace(0, high, 48 * 64).reshape(48, 64)
    Image.fromarray(ramp.astype(np.uint16)).save(path)
  return str(photos), str(labels)


def test_validation_images_are_scaled_as_those_of_training(tmp_path):
  train = write_wide(tmp_path / 'train', 4000)
  val = write_wide(tmp_path / 'val', 1000)
  data = RunData(*train, *val, num_workers=1)
  text = run_records.prepare_all(tmp_path / 'run', data)
  assert 'as in the training set' in text
  from maskrcnn_jax.datasets import records

  brightest = {}
  for part in ('train', 'val'):
    index = record_index.index_records(
      run_records.pattern(tmp_path / 'run', part)
    )
    parsed = records.parse_record(records.read_record(index, 0))
    pixels = records.tf.io.decode_image(parsed['encoded'])
    brightest[part] = int(pixels.numpy().max())
  assert brightest['train'] == 255
  # A quarter of the training set's values, and not 255.
  assert 60 <= brightest['val'] <= 66


def test_a_failed_preparation_leaves_nothing(tmp_path):
  data = make_data(tmp_path / 'data')
  pathlib.Path(data.images, '03.png').write_bytes(b'no image')
  (tmp_path / 'run').mkdir()
  with pytest.raises(InvalidDataError):
    run_records.prepare_all(tmp_path / 'run', data)
  assert not [*(tmp_path / 'run').iterdir()]
  assert not run_records.is_prepared(tmp_path / 'run')


def test_unfinished_records_are_never_used(tmp_path, monkeypatch):
  data = make_data(tmp_path / 'data')
  write = prepare.write

  class KilledError(BaseException):
    """Stands for a kill, which runs no cleaning."""

  def killed(images, stem, *more):
    if stem.endswith('val'):
      # As the folder is at that moment: without the records to validate on.
      shutil.copytree(pathlib.Path(stem).parent, tmp_path / 'left')
      raise KilledError
    return write(images, stem, *more)

  monkeypatch.setattr(prepare, 'write', killed)
  with pytest.raises(KilledError):
    run_records.prepare_all(tmp_path / 'run', data)
  monkeypatch.undo()
  left = tmp_path / 'run' / '.records-x1.unfinished'
  (tmp_path / 'left').rename(left)
  assert [x.name for x in left.glob('*.tfrecord')]
  assert not run_records.is_prepared(tmp_path / 'run')
  run_records.prepare_all(tmp_path / 'run', data)
  assert not left.exists()
  assert run_records.check(tmp_path / 'run', data).num_images['val'] == 2


def test_missing_and_truncated_records_are_noticed(copied):
  data, workdir = copied
  (path,) = (workdir / 'records').glob('train-*')
  content = path.read_bytes()
  path.write_bytes(content[:-1])
  with pytest.raises(UserError) as error:
    run_records.check(workdir, data)
  assert error.value.given[path.name] == len(content) - 1
  path.unlink()
  with pytest.raises(UserError) as error:
    run_records.check(workdir, None)
  assert error.value.wanted[path.name] == len(content)


@pytest.mark.parametrize(
  'text', ['', '[]', '{}', '{"version": 1, "options": {}}', '{"version": 2}']
)
def test_a_description_that_is_none(copied, text):
  data, workdir = copied
  path = workdir / 'records' / 'prepared.json'
  path.write_text(text)
  with pytest.raises(UserError) as error:
    run_records.check(workdir, data)
  assert error.value.path == str(path)


def test_links_are_not_followed(copied):
  data, workdir = copied
  (workdir / 'records').rename(workdir / 'elsewhere')
  (workdir / 'records').symlink_to(workdir / 'elsewhere')
  with pytest.raises(UserError) as error:
    run_records.check(workdir, data)
  assert error.value.path == str(workdir / 'records')


def test_a_record_file_that_is_a_link_is_not_read(copied):
  _, workdir = copied
  path = next((workdir / 'records').glob('train-*'))
  path.rename(workdir / 'elsewhere')
  path.symlink_to(workdir / 'elsewhere')
  with pytest.raises(UserError) as error:
    run_records.check(workdir, None)
  assert error.value.path == str(path)


def test_a_folder_that_a_user_made_stays(tmp_path):
  data = make_data(tmp_path / 'data')
  own = tmp_path / 'run' / 'records' / 'mine.txt'
  files.write_text(own, 'mine')
  with pytest.raises(UserError) as error:
    run_records.prepare_all(tmp_path / 'run', data)
  assert error.value.path == str(own.parent)
  assert own.read_text() == 'mine'


def test_a_workdir_with_a_comma_is_refused(tmp_path):
  with pytest.raises(UserError) as error:
    run_records.prepare_all(tmp_path / 'a,b', make_data(tmp_path / 'data'))
  assert error.value.argument == '--workdir'


def test_a_workdir_may_have_any_other_name(tmp_path):
  data, workdir = make_data(tmp_path / 'data'), tmp_path / 'run [1]*?'
  run_records.prepare_all(workdir, data)
  assert len(image_ids(workdir, 'train')) == 8


def test_without_validation_images(tmp_path):
  data = make_data(tmp_path / 'data', val_share=0)
  run_records.prepare_all(tmp_path / 'run', data)
  found = run_records.check(tmp_path / 'run', data)
  assert found.num_images == {'train': 10}
  assert not run_records.has_validation(tmp_path / 'run')
