"""Images that lie in the folders of a data set and are in none of its jsons."""

import os
from collections.abc import Iterator, Sequence

from maskrcnn_jax.datasets.doctor.survey import Split
from maskrcnn_jax.datasets.findings import Finding

# With one of these the names of a json are not all known.
_NAMELESS = {'entry', 'image_entry', 'image_id', 'duplicate_image_id'}


def check_listing(splits: Sequence[Split]) -> Iterator[Finding]:
  """Yields files that look like the images of a json and are in no json.

  Those that have the ending of a listed file count, in the folder and below.

  Args:
    splits: those that share a folder share its files.
  """
  folders = {}
  for split in splits:
    folders.setdefault(os.path.realpath(split.images_dir), []).append(split)
  for same in folders.values():
    if any(each.kind in _NAMELESS for split in same for each in split.findings):
      continue
    folder = same[0].images_dir
    listed = {
      os.path.normpath(image.file_name)
      for split in same
      for image in split.dataset.images
    }
    endings = {os.path.splitext(name)[1].lower() for name in listed} - {''}
    jsons = ' or '.join(split.file for split in same)
    for path in _walk(folder):
      ending = os.path.splitext(path)[1].lower()
      if ending in endings and os.path.relpath(path, folder) not in listed:
        message = (
          f'is not in {jsons}, so it is not used. Add it there, if only as an '
          'image without objects, or move it away.'
        )
        yield Finding('image_not_listed', path, None, None, message, 'note')


def _walk(folder) -> Iterator[str]:
  for place, folders, names in os.walk(folder):
    folders.sort()
    yield from (os.path.join(place, name) for name in sorted(names))
