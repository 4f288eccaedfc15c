"""The networks in plain torch.nn, with the layers and counts of the engine's (`sparse-engine inspect --model NAME`).

ReLU works in place, as is usual: it saves PyTorch a tensor for each, in time and in memory.
"""

import torch
from torch import nn

import names

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # a stage
VGG_CONVOLUTIONS = {  # before each of the four max pools, and after the last
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def build(name):
    """The network, and the shape of one image and the number of classes that it is measured with."""
    if name in names.IMAGENET:
        depth, widen = names.IMAGENET[name]
        return ImageNetResNet(BLOCKS[depth], depth >= 50, widen, classes=1000), (3, 224, 224), 1000
    if name in names.VGG:
        return Vgg(VGG_CONVOLUTIONS[names.VGG[name]], classes=10), (3, 32, 32), 10
    return CifarResNet(names.cifar_depth(name), classes=10), (3, 32, 32), 10


def conv_bn(inputs, outputs, side, stride=1):
    """A convolution without bias, padded to keep the image size at stride 1, and its batch norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """relu(main(x) + shortcut(x)); the shortcut is 1x1 convolution + batch norm where the shape changes (option B)."""

    def __init__(self, inputs, outputs, stride, *main):
        super().__init__()
        self.main = nn.Sequential(*main)
        self.shortcut = nn.Identity() if (inputs, stride) == (outputs, 1) else conv_bn(inputs, outputs, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.main(x)
        y += self.shortcut(x)
        return self.relu(y)


def basic(inputs, width, stride):
    return Block(
        inputs, width, stride, conv_bn(inputs, width, 3, stride), nn.ReLU(inplace=True), conv_bn(width, width, 3)
    )


def bottleneck(inputs, middle, outputs, stride):
    """The stride on the 3x3 convolution ("v1.5")."""
    return Block(
        inputs,
        outputs,
        stride,
        conv_bn(inputs, middle, 1),
        nn.ReLU(inplace=True),
        conv_bn(middle, middle, 3, stride),
        nn.ReLU(inplace=True),
        conv_bn(middle, outputs, 1),
    )


class Net(nn.Module):
    """Features, mean over the image, linear layer."""

    def __init__(self, features, channels, classes):
        super().__init__()
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


class CifarResNet(Net):
    def __init__(self, depth, classes, width=16):
        features, inputs = [conv_bn(3, width, 3), nn.ReLU(inplace=True)], width
        for segment in range(3):
            for i in range((depth - 2) // 6):
                features.append(basic(inputs, width << segment, 2 if segment and i == 0 else 1))
                inputs = width << segment
        super().__init__(features, inputs, classes)


class ImageNetResNet(Net):
    def __init__(self, stages, is_bottleneck, widen, classes):
        features, inputs = [conv_bn(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)], 64
        for stage, blocks in enumerate(stages):
            width = 64 << stage
            for i in range(blocks):
                stride = 2 if stage and i == 0 else 1
                if is_bottleneck:
                    features.append(bottleneck(inputs, width * widen, width * 4, stride))
                    inputs = width * 4
                else:
                    features.append(basic(inputs, width, stride))
                    inputs = width
        super().__init__(features, inputs, classes)


class Vgg(Net):
    def __init__(self, stages, classes):
        features, inputs = [], 3
        for stage, convolutions in enumerate(stages):
            if stage:
                features.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                features += [conv_bn(inputs, min(64 << stage, 512), 3), nn.ReLU(inplace=True)]
                inputs = min(64 << stage, 512)
        super().__init__(features, inputs, classes)
