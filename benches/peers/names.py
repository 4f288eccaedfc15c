"""The names of networks, the same as the engine's. No torch here, so that the driver can refuse a wrong one at once."""

import re

IMAGENET = {  # depth and factor of the bottlenecks' inner width, for 3x224x224 and 1,000 classes
    "resnet18": (18, 1),
    "resnet34": (34, 1),
    "resnet50": (50, 1),
    "resnet101": (101, 1),
    "resnet152": (152, 1),
    "wrn50-2": (50, 2),
    "wrn101-2": (101, 2),
    "wide-resnet50-2": (50, 2),
    "wide-resnet101-2": (101, 2),
}
VGG = {"vgg11": 11, "vgg13": 13, "vgg16": 16, "vgg19": 19}  # with batch norm; for 3x32x32 and 10 classes


def cifar_depth(name):
    """N of resnetN or cifar-resnetN for small images (3x32x32, 10 classes), N = 6D+2.

    Call it after looking in IMAGENET: resnet50 and resnet152 are there, the small ones have the longer name alone.
    """
    found = re.fullmatch(r"(?:cifar-)?resnet([1-9][0-9]{0,3})", name)
    if found and 8 <= int(found[1]) <= 1202 and int(found[1]) % 6 == 2:
        return int(found[1])
    known = ", ".join([*IMAGENET, *VGG])
    raise ValueError(f"model: wanted resnetN or cifar-resnetN with N = 6D+2 from 8 to 1202, {known}; got {name}")


def default_batch(name):
    """16 for large images, 128 for small ones. Raises ValueError for an unknown name."""
    if name in IMAGENET:
        return 16
    if name not in VGG:
        cifar_depth(name)
    return 128
