"""Public weights by name: where they are, their checksum, licence and scores.

Only weights that `external` reads are listed. Checksums are the first digits
that the source states, in the name of the file or in a list; Hugging Face and
Detectron2's ImageNet backbones state none that is known here.

Sources: torchvision 0.29.1, the `Weights` enums of `models/resnet.py`,
`models/convnext.py` and `models/detection/mask_rcnn.py`; Detectron2,
`MODEL_ZOO.md` and `checkpoint/catalog.py`; timm, `models/resnet.py`,
`models/convnext.py` and `models/_hub.py`; the READMEs of
facebookresearch/ConvNeXt, of facebookresearch/mae and of Detectron2's
`projects/ViTDet`; the scripts of Habana's reference and NVIDIA's NGC.
"""

import dataclasses
import re

SCRIPT = 'data/download_pretrained_weights.sh'
BUCKET = 'https://storage.googleapis.com/cloud-tpu-checkpoints'
_PYTORCH = 'https://download.pytorch.org/models'
_DETECTRON2 = 'https://dl.fbaipublicfiles.com/detectron2'
_DETECTRON = 'https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained'
_MAE = 'https://dl.fbaipublicfiles.com/mae/pretrain'
_CONVNEXT = 'https://dl.fbaipublicfiles.com/convnext'
_TIMM = 'https://github.com/huggingface/pytorch-image-models/releases/download'
_HUGGING_FACE = 'https://huggingface.co/timm/{}/resolve/main/model.safetensors'

# Those of Detectron2 that were trained from random values divide by ImageNet's
# deviation; the others have 1.
_STD = ('model.pixel_std=(0.229,0.224,0.225)',)


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights that somebody published.

  Attributes:
    name: for `training.pretrained`, such as `torchvision/NAME`.
    url: of the file; of a folder for those of `SCRIPT`.
    licence: as the source states it; '' if it states none.
    checksum: `ALGORITHM:` and the first hex digits; '' if none is published.
    megabytes: size in 2**20 bytes; None if it is not published.
    score: published box and mask AP on COCO val2017 unless stated otherwise, or
      top-1 accuracy on ImageNet; '' if the source states none.
    by_script: `SCRIPT` downloads these, in several files.
    overrides: fields of the config of its model that the tensors do not tell.
  """

  name: str
  url: str
  licence: str
  checksum: str = ''
  megabytes: float | None = None
  score: str = ''
  by_script: bool = False
  overrides: tuple[str, ...] = ()

  @property
  def file(self) -> str:
    """Name of the file."""
    return self.url.rpartition('/')[2]


def _torchvision(name, digest, megabytes, score):
  file = re.sub(r'_imagenet1k_v\d$', '', name)
  return Weights(
    f'torchvision/{name}',
    f'{_PYTORCH}/{file}-{digest}.pth',
    'BSD-3-Clause',
    f'sha256:{digest}',
    float(megabytes),
    score,
  )


def _detectron2(folder, name, number, digest, score):
  name = f'{folder}/{name}'
  return Weights(
    f'detectron2/{name}',
    f'{_DETECTRON2}/{name}/{number}/model_final_{digest}.pkl',
    'CC BY-SA 3.0',
    f'md5:{digest}',
    score=score,
    overrides=_STD if '/scratch_' in name else (),
  )


def _detectron2_backbone(name):
  name = f'ImageNetPretrained/{name}'
  return Weights(
    f'detectron2/{name}', f'{_DETECTRON2}/{name}.pkl', 'CC BY-SA 3.0'
  )


def _detectron_backbone(name, number):
  file = f'{number}/{name.rpartition("/")[2]}.pkl'
  return Weights(
    f'detectron2/ImageNetPretrained/{name}', f'{_DETECTRON}/{file}', ''
  )


def _timm(name, file):
  checksum = f'sha256:{file.rpartition("-")[2]}'
  return Weights(f'timm/{name}', f'{_TIMM}/{file}.pth', 'Apache-2.0', checksum)


def _hugging_face(name, licence):
  return Weights(f'timm/{name}', _HUGGING_FACE.format(name), licence)


def _convnext(name):
  return Weights(f'convnext/{name}', f'{_CONVNEXT}/{name}.pth', 'MIT')


def _mae(name, digest):
  # The digits are those of the README, not of the name.
  return Weights(
    f'mae/{name}', f'{_MAE}/{name}.pth', 'CC BY-NC 4.0', f'md5:{digest}'
  )


def _by_script(name, url):
  return Weights(name, url, '', by_script=True)


# Name, first digits of the checksum, megabytes and score.
_TORCHVISION = """
maskrcnn_resnet50_fpn_coco bf2d0c1e 169.84 37.9 / 34.6
maskrcnn_resnet50_fpn_v2_coco 73cbd019 177.219 47.4 / 41.8
resnet18_imagenet1k_v1 f37072fd 44.661 top-1 69.76
resnet34_imagenet1k_v1 b627a593 83.275 top-1 73.31
resnet50_imagenet1k_v1 0676ba61 97.781 top-1 76.13
resnet50_imagenet1k_v2 11ad3fa6 97.79 top-1 80.86
resnet101_imagenet1k_v1 63fe2227 170.511 top-1 77.37
resnet101_imagenet1k_v2 cd907fc2 170.53 top-1 81.89
resnet152_imagenet1k_v1 394f9c45 230.434 top-1 78.31
resnet152_imagenet1k_v2 f82ba261 230.474 top-1 82.28
resnext101_32x8d_imagenet1k_v1 8ba56ff5 339.586 top-1 79.31
resnext101_32x8d_imagenet1k_v2 110c445d 339.673 top-1 82.83
convnext_tiny_imagenet1k_v1 983f1562 109.119 top-1 82.52
convnext_small_imagenet1k_v1 0c510722 191.703 top-1 83.62
convnext_base_imagenet1k_v1 6075fbad 338.064 top-1 84.06
convnext_large_imagenet1k_v1 ea097f82 754.537 top-1 84.41
"""
# Folder -> name, number, first digits of the checksum and score.
_DETECTRON2_MODELS = {
  'COCO-InstanceSegmentation': """
    mask_rcnn_R_50_FPN_1x 137260431 a54504 38.6 / 35.2
    mask_rcnn_R_50_FPN_3x 137849600 f10217 41.0 / 37.2
    mask_rcnn_R_101_FPN_3x 138205316 a3ec72 42.9 / 38.6
    mask_rcnn_X_101_32x8d_FPN_3x 139653917 2d9806 44.3 / 39.5
  """,
  'new_baselines': """
    mask_rcnn_R_50_FPN_100ep_LSJ 42047764 bb69de 44.6 / 40.3
    mask_rcnn_R_50_FPN_200ep_LSJ 42047638 89a8d3 46.3 / 41.7
    mask_rcnn_R_50_FPN_400ep_LSJ 42019571 14d201 47.4 / 42.5
    mask_rcnn_R_101_FPN_100ep_LSJ 42025812 4f7b58 46.4 / 41.6
    mask_rcnn_R_101_FPN_200ep_LSJ 42131867 0bb7ae 48.0 / 43.1
    mask_rcnn_R_101_FPN_400ep_LSJ 42073830 f96b26 48.9 / 43.7
  """,
  'Misc': """
    mask_rcnn_R_50_FPN_3x_gn 138602888 dc5d9e 42.6 / 38.6
    mask_rcnn_R_50_FPN_3x_syncbn 169527823 3b3c51 41.9 / 37.8
    scratch_mask_rcnn_R_50_FPN_3x_gn 138602908 01ca85 39.9 / 36.6
    scratch_mask_rcnn_R_50_FPN_9x_gn 183808979 da7b4c 43.7 / 39.6
    scratch_mask_rcnn_R_50_FPN_9x_syncbn 184226666 5ce33e 43.6 / 39.3
  """,
  'Cityscapes': 'mask_rcnn_R_50_FPN 142423278 af9cf5 Cityscapes - / 36.5',
  'LVISv0.5-InstanceSegmentation': """
    mask_rcnn_R_50_FPN_1x 144219072 571f7c LVIS v0.5 23.6 / 24.4
  """,
  'ViTDet/COCO': """
    mask_rcnn_vitdet_b f325346929 61ccd1 51.6 / 45.9
    mask_rcnn_vitdet_l f325599698 6146ed 55.5 / 49.2
    mask_rcnn_vitdet_h f329145471 7224f1 56.7 / 50.2
  """,
}


def _lines(text):
  return text.strip().splitlines()


# fmt: off
_ALL = (
  *(_torchvision(*line.split(maxsplit=3)) for line in _lines(_TORCHVISION)),
  *(_detectron2(folder, *line.split(maxsplit=3))
    for folder, lines in _DETECTRON2_MODELS.items() for line in _lines(lines)),
  _detectron2_backbone('MSRA/R-50'),
  _detectron2_backbone('MSRA/R-101'),
  _detectron2_backbone('FAIR/X-101-32x8d'),
  _detectron2_backbone('torchvision/R-50'),
  _detectron_backbone('FAIR/R-50-GN', 47261647),
  _detectron_backbone('FAIR/R-101-GN', 47592356),
  _timm('resnet50.a1_in1k', 'v0.1-rsb-weights/resnet50_a1_0-14fe96d1'),
  _timm('resnet50.a1h_in1k', 'v0.1-rsb-weights/resnet50_a1h2_176-001a1197'),
  _timm('resnet50.a2_in1k', 'v0.1-rsb-weights/resnet50_a2_0-a2746f79'),
  _timm('resnet50.a3_in1k', 'v0.1-rsb-weights/resnet50_a3_0-59cae1ef'),
  _timm('resnet50.b1k_in1k', 'v0.1-rsb-weights/resnet50_b1k-532a802a'),
  _timm('resnet50.c1_in1k', 'v0.1-rsb-weights/resnet50_c1-5ba5e060'),
  _timm('resnet50.d_in1k', 'v0.1-rsb-weights/resnet50_d-f39db8af'),
  _timm('resnet50.ram_in1k', 'v0.1-weights/resnet50_ram-a26f946b'),
  _timm('resnet101.a1h_in1k', 'v0.1-rsb-weights/resnet101_a1h-36d3f2aa'),
  _timm('resnet101.a1_in1k', 'v0.1-rsb-weights/resnet101_a1_0-cdcb52a9'),
  _hugging_face('resnet50.tv_in1k', 'BSD-3-Clause'),
  _hugging_face('resnet50.tv2_in1k', 'BSD-3-Clause'),
  _convnext('convnext_tiny_1k_224'),
  *(_convnext(f'convnext_{size}_{kind}')
    for size in ('tiny', 'small', 'base', 'large')
    for kind in ('1k_224_ema', '22k_224', '22k_1k_224')),
  *(_hugging_face(f'convnext_{size}.{tag}', '')
    for size in ('tiny', 'small', 'base', 'large')
    for tag in ('fb_in1k', 'fb_in22k', 'fb_in22k_ft_in1k')),
  _mae('mae_pretrain_vit_base', '8cad7c'),
  _mae('mae_pretrain_vit_large', 'b8b06e'),
  _hugging_face('vit_base_patch16_224.mae', 'CC BY-NC 4.0'),
  _by_script('google/resnet50_imagenet',
             f'{BUCKET}/retinanet/resnet50-checkpoint-2018-02-07'),
  _by_script('google/maskrcnn_resnet50_coco',
             f'{BUCKET}/mask-rcnn/1555659850'),
  _by_script('nvidia/resnet50_imagenet',
             'https://api.ngc.nvidia.com/v2/models/nvidia/rn50_tf_amp_ckpt/'
             'versions/20.06.0/zip'),
)
# fmt: on
TABLE = {weights.name: weights for weights in _ALL}


def by_file(name: str) -> Weights | None:
  """The entry of a file name with a checksum in it; None without one."""
  found = (x for x in _ALL if x.checksum and x.file == name)
  return next(found, None)
