"""Makes tests/fixtures/saliency_f64.safetensors: SNIP and GraSP scores of two small networks in float64, by PyTorch.

    python scripts/make_saliency_fixture.py tests/fixtures/saliency_f64.safetensors

The committed file was made with the versions in its metadata, on a CPU, one thread.

SNIP: each weight is multiplied by a factor of 1; the score is the size of the loss's gradient with respect to the factor.
GraSP: g is the sum over the parts of the gradients of cross_entropy(logits / T) in all weights, graph kept; for each part,
the gradient of sum(g * gradient), g held constant, is added to Hg by a second backward pass; the score is w * Hg. Training
mode everywhere: batch statistics. "Weights" are those of convolutions and of the linear layer.

File. Images are float32 [11,3,10,10], labels uint32 [11] in ascending order; the parts are images 0..7 and 7..11. Of each
network, "resnet" and "vgg", flat:
    NET.values    float32, all parameters in creation order; float64 holds the same numbers in the computation
    NET.loss      float64 [1], of all images as one batch
    NET.snip      float64, of all images as one batch: of each weight tensor in creation order
    NET.grasp1, NET.grasp200   float64, likewise, at T = 1 and T = 200
Metadata `about`, one JSON object: parts, params (NET -> [name, shape] in creation order), python, torch, numpy, safetensors.
"""

import json
import platform
import sys

import numpy as np
import safetensors
import torch
from make_torch_fixture import Block
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

CLASSES, SIDE, PARTS = 4, 10, [0, 7, 11]


class ResNet(nn.Module):
    """8 layers, 4 channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        for segment, (inputs, outputs) in enumerate([(4, 4), (4, 8), (8, 16)]):
            blocks = nn.Module()
            blocks.add_module("block0", Block(inputs, outputs, 1 if segment == 0 else 2))
            self.add_module(f"segment{segment}", blocks)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        for segment in [self.segment0, self.segment1, self.segment2]:
            x = segment.block0(x)
        return self.fc(x.mean(dim=(2, 3)))


class Vgg(nn.Module):
    """Two kinds of max pools; a 1x1 convolution."""

    def __init__(self):
        super().__init__()
        for i, (inputs, outputs, kernel) in enumerate([(3, 5, 3), (5, 6, 3), (6, 9, 1), (9, 7, 3)]):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn0(self.conv0(x))), 3, 2, 1)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean(dim=(2, 3)))


def initialise(net, rng):
    """Values that float32 holds; scales and shifts away from 1 and 0."""
    for name, p in net.named_parameters():
        if p.dim() > 1:
            new = rng.normal(0.0, (2.0 / p[0].numel()) ** 0.5, tuple(p.shape))
        else:
            new = rng.normal(1.0 if name.endswith("weight") else 0.0, 0.2, tuple(p.shape))
        p.data = torch.from_numpy(new.astype(np.float32).astype(np.float64))


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def snip(net, params, images, labels):
    factors = {name: torch.ones_like(p, requires_grad=True) for name, p in params.items() if p.dim() > 1}
    used = {name: p * factors[name] if name in factors else p for name, p in params.items()}
    loss = F.cross_entropy(functional_call(net, used, images), labels)
    scores = torch.autograd.grad(loss, list(factors.values()))
    return loss.detach().reshape(1), flat(scores).abs()


def grasp(net, params, images, labels, temperature):
    weights = [p for p in params.values() if p.dim() > 1]
    cuts = list(zip(PARTS, PARTS[1:]))
    loss = lambda a, b: F.cross_entropy(net(images[a:b]) / temperature, labels[a:b])
    gradients = [torch.autograd.grad(loss(a, b), weights) for a, b in cuts]
    total = [sum(of_part) for of_part in zip(*gradients)]
    product = [torch.zeros_like(w) for w in weights]
    for a, b in cuts:
        again = torch.autograd.grad(loss(a, b), weights, create_graph=True)
        slope = sum((g.detach() * h).sum() for g, h in zip(total, again))
        product = [sum(pair) for pair in zip(product, torch.autograd.grad(slope, weights))]
    return flat(w * h for w, h in zip(weights, product))


def main(path):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rng = np.random.default_rng(5)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3])
    templates = rng.normal(0.0, 1.0, (CLASSES, 3, SIDE, SIDE))
    noisy = templates[labels] + rng.normal(0.0, 0.5, (len(labels), 3, SIDE, SIDE))
    images = torch.from_numpy(np.round(noisy * 64.0) / 64.0)
    tensors = {"images": images.float(), "labels": labels.to(torch.uint32)}
    params = {}
    for name, net in {"resnet": ResNet(), "vgg": Vgg()}.items():
        initialise(net, rng)
        of_net = dict(net.named_parameters())
        params[name] = [[p, list(of_net[p].shape)] for p in of_net]
        loss, scores = snip(net, of_net, images, labels)
        tensors |= {f"{name}.values": flat(of_net.values()).float(), f"{name}.loss": loss, f"{name}.snip": scores}
        for temperature in [1, 200]:
            tensors[f"{name}.grasp{temperature}"] = grasp(net, of_net, images, labels, temperature)
        print(f"{name}: {len(scores)} weights, loss {loss.item():.4f}")
    about = {
        "parts": PARTS,
        "params": params,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    }
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"about": json.dumps(about)})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
