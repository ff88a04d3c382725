"""The networks of the distillation examples: image translation (CycleGAN, Pix2Pix) and trained DCGANs."""

from models.dcgan import eye_dcgan, face_dcgan, load_dcgan
from models.patchgan import patchgan
from models.resnet import resnet_generator
from models.unet import UNet

__all__ = ["UNet", "eye_dcgan", "face_dcgan", "load_dcgan", "patchgan", "resnet_generator"]
