"""Which files are looked at, and their ids, pictures and names."""

import json
import pathlib

import pytest

from maskrcnn_jax.inference import image_list


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder of files that nobody opens."""
  folder = tmp_path_factory.mktemp('photos')
  for name in ('a.jpg', 'b.png', 'cut.jpg', 'sub/a.png', 'notes.txt'):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
  return folder


def test_without_annotations_they_are_numbered(photos):
  files, class_names = image_list.make_list([photos], 'out')
  assert class_names == {}
  assert [(file.image_id, file.name, file.picture) for file in files] == [
    (1, 'a.jpg', 'pictures/a.png'),
    (2, 'b.png', 'pictures/b.png'),
    (3, 'cut.jpg', 'pictures/cut.png'),
    (4, 'sub/a.png', 'pictures/a-2.png'),
  ]
  assert [file.path for file in files] == [photos / x.name for x in files]
  assert {file.size for file in files} == {None}


def test_what_the_output_holds_is_left_out(photos):
  files, _ = image_list.make_list([photos], photos / 'sub')
  assert [file.name for file in files] == ['a.jpg', 'b.png', 'cut.jpg']
  with pytest.raises(FileNotFoundError, match='nothing but --output'):
    image_list.make_list([photos / 'sub'], photos / 'sub')


def test_every_picture_has_a_name_of_its_own():
  paths = ['a/x.jpg', 'b/X.png', 'x-2.jpg', 'y.tar.gz', 'b/x.jpg']
  names = image_list.picture_names(map(pathlib.Path, paths))
  assert names == [
    'pictures/x.png',
    'pictures/X-2.png',
    'pictures/x-2-2.png',
    'pictures/y.tar.png',
    'pictures/x-3.png',
  ]


@pytest.fixture
def annotations(tmp_path):
  """Writes a COCO json of test images, which has no annotations."""

  def write(**images):
    content = {
      'images': [
        {'id': 70 + i, 'file_name': name, 'height': h, 'width': w}
        for i, (name, (h, w)) in enumerate(images.items())
      ],
      'categories': [{'id': 1, 'name': 'other'}],
    }
    path = tmp_path / 'images.json'
    path.write_text(json.dumps(content))
    return path

  return write


def ids(photos, annotations, *names):
  """The ids of some photos by the annotations."""
  images = [photos / name for name in names]
  files, class_names = image_list.make_list(images, 'out', annotations)
  assert class_names == {1: 'other'}
  return [file.image_id for file in files]


def test_ids_by_the_annotations(photos, annotations):
  names = ('a.jpg', 'b.png', 'sub/a.png')
  file = annotations(**{'b.png': (90, 50), 'a.png': (3, 4), 'a.jpg': (6, 8)})
  assert ids(photos, file, *names) == [72, 70, 71]
  # The longest name that fits, and one with folders that are not there.
  file = annotations(
    **{'a.png': (3, 4), 'sub/a.png': (3, 4), 'train/b.png': (9, 5)}
  )
  assert ids(photos, file, *names[1:]) == [72, 71]


def test_images_that_are_not_in_the_annotations(photos, annotations):
  file = annotations(**{'b.png': (90, 50)})
  with pytest.raises(ValueError, match=r'3 of 4 images are not in .*a\.jpg'):
    ids(photos, file, '')
  # Two folders of the annotations have such a file: which one is meant?
  file = annotations(**{'x/b.png': (90, 50), 'y/b.png': (90, 50)})
  with pytest.raises(ValueError, match='1 of 1 images are not in'):
    ids(photos, file, 'b.png')


def test_two_images_with_one_id(photos, annotations, tmp_path):
  file = annotations(**{'b.png': (90, 50)})
  (tmp_path / 'b.png').touch()
  with pytest.raises(ValueError, match='would both be image 70'):
    ids(photos, file, 'b.png', tmp_path / 'b.png')
