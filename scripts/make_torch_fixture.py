"""Makes tests/fixtures/resnet20_f64.safetensors: 20 SGD steps of a sparse ResNet-20 in float64, done by PyTorch.

    python scripts/make_torch_fixture.py tests/fixtures/resnet20_f64.safetensors

The committed file was made with Python 3.11.7, PyTorch 2.15.0 (CPU, one thread), NumPy 2.4.6, safetensors 0.8.0.
Other versions give the same network and masks; their sums may round differently in the last digits.

The network is the small-image ResNet of the paper's code (6D+2 layers, 1x1 stride-2 convolution and batch norm as the
shortcut, log-softmax with negative log-likelihood). The step is its step too: all tensors dense, SGD with Nesterov
momentum and weight decay on every parameter, then each masked tensor times its mask. Gradients and momentum of pruned
positions exist here and are left out of the file. Width 5 and 12x12 images keep the file below 2 MB and every size odd
(5, 10, 20 channels; 12, 6, 3 pixels).

File. Numbers are float64 or uint32. `stored` is the length of the flat parameter store: parameters in creation order,
of each its kept positions in ascending order. `running`: norms in creation order, of each its means, then its variances.
    images [37,3,12,12], labels [37]; order [20,16], count [20]: images of each step (unused places hold 0)
    kept.<parameter>                  kept positions of the flattened tensor, ascending; absent: all
    values, momentum [21,stored]      before step 0, and after each step
    running [21,running]              likewise
    grads [20,stored]                 of the mean loss, weight decay not added
    loss [20], logits [20,16,10]      of the training forward; logits of absent images hold 0
    eval_loss [1], eval_logits [16,10]  evaluation mode, last state, images 0..16, mean loss
    eval_input_grad [16,3,12,12]      gradient of those images: of the sum of their losses
Metadata `about`, one JSON object: params ([name, shape] in creation order), norms (names in creation order), depth,
width, batch, lr, momentum, weight_decay, nesterov, python, torch, numpy, safetensors.
"""

import json
import platform
import sys

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

DEPTH, WIDTH, CHANNELS, CLASSES, SIDE = 20, 5, 3, 10, 12
IMAGES, BATCH, STEPS, DENSITY = 37, 16, 20, 0.1
LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
# Convolutions that lose an output channel and an input channel altogether: (parameter, output, input).
DEAD = [("segment0.block1.conv2.weight", 2, 4), ("segment2.block0.conv1.weight", 0, 9)]


class Shortcut(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn(self.conv(x))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(inputs, outputs) if stride != 1 else nn.Identity()

    def forward(self, x):
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTH)
        inputs = WIDTH
        for segment in range(3):
            outputs = WIDTH << segment
            blocks = nn.Module()
            for block in range((DEPTH - 2) // 6):
                stride = 2 if segment > 0 and block == 0 else 1
                blocks.add_module(f"block{block}", Block(inputs, outputs, stride))
                inputs = outputs
            self.add_module(f"segment{segment}", blocks)
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        for segment in range(3):
            for block in getattr(self, f"segment{segment}").children():
                x = block(x)
        return self.fc(x.mean(dim=(2, 3)))


def initialise(net, rng):
    """Normal with variance 2 / fan-in for convolutions and the linear weight; the linear bias uniform."""
    for name, p in net.named_parameters():
        if p.dim() > 1:
            p.data = torch.from_numpy(rng.normal(0.0, (2.0 / p[0].numel()) ** 0.5, tuple(p.shape)))
        elif name == "fc.bias":
            bound = net.fc.in_features**-0.5
            p.data = torch.from_numpy(rng.uniform(-bound, bound, tuple(p.shape)))


def draw_masks(net, rng):
    """The same count round(density x size) in every masked tensor; none of them in a channel listed as dead."""
    masks = {}
    for name, p in net.named_parameters():
        if p.dim() == 1:
            continue
        allowed = np.ones(tuple(p.shape), dtype=bool)
        for dead, output, inputs in DEAD:
            if dead == name:
                allowed[output] = False
                allowed[:, inputs] = False
        kept = rng.choice(np.flatnonzero(allowed), max(1, round(DENSITY * p.numel())), replace=False)
        mask = torch.zeros(p.numel(), dtype=torch.float64)
        mask[torch.from_numpy(np.sort(kept))] = 1.0
        masks[name] = mask.reshape(p.shape)
    return masks


def draw_images(rng):
    """A class is a smooth template; an image is its template plus noise, in steps of 1/64: exact in float32."""
    labels = rng.permutation(np.arange(IMAGES) % CLASSES)
    coarse = rng.normal(0.0, 1.0, (CLASSES, CHANNELS, SIDE // 4, SIDE // 4))
    templates = coarse.repeat(4, axis=2).repeat(4, axis=3)
    images = templates[labels] + rng.normal(0.0, 0.5, (IMAGES, CHANNELS, SIDE, SIDE))
    return torch.from_numpy(np.round(images * 64.0) / 64.0), torch.from_numpy(labels)


def main(path):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rng = np.random.default_rng(20)
    net = ResNet()
    initialise(net, rng)
    masks = draw_masks(net, rng)
    images, labels = draw_images(rng)
    params = dict(net.named_parameters())
    norms = {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    sgd = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)

    def stored(tensor_of):
        """A flat store: of each parameter the kept positions."""
        parts = []
        for name, p in params.items():
            flat = tensor_of(p).detach().reshape(-1)
            parts.append(flat[masks[name].reshape(-1) != 0] if name in masks else flat)
        return torch.cat(parts)

    def apply_masks():
        with torch.no_grad():
            for name, mask in masks.items():
                params[name].mul_(mask)

    history = {"values": [], "momentum": [], "running": []}

    def record():
        history["values"].append(stored(lambda p: p))
        history["momentum"].append(stored(lambda p: sgd.state[p]["momentum_buffer"] if p in sgd.state else p * 0))
        history["running"].append(torch.cat([torch.cat([m.running_mean, m.running_var]) for m in norms.values()]))

    apply_masks()
    record()
    order = torch.zeros(STEPS, BATCH, dtype=torch.int64)
    count = torch.zeros(STEPS, dtype=torch.int64)
    losses, grads = [], []
    logits = torch.zeros(STEPS, BATCH, CLASSES)
    batches = []
    for step in range(STEPS):
        if not batches:
            batches = list(torch.from_numpy(rng.permutation(IMAGES)).split(BATCH))  # 16, 16, 5
        batch = batches.pop(0)
        order[step, : len(batch)] = batch
        count[step] = len(batch)

        sgd.zero_grad()
        out = net(images[batch])
        loss = F.nll_loss(F.log_softmax(out, dim=1), labels[batch])
        loss.backward()
        losses.append(loss.detach())
        logits[step, : len(batch)] = out.detach()
        grads.append(stored(lambda p: p.grad))
        sgd.step()
        apply_masks()
        record()
        print(f"step {step:2}: {len(batch):2} images, loss {loss.item():.4f}")

    net.eval()
    with torch.no_grad():
        eval_logits = net(images[:BATCH])
        eval_loss = F.nll_loss(F.log_softmax(eval_logits, dim=1), labels[:BATCH])
    print(f"evaluation: loss {eval_loss.item():.4f}")
    seen = images[:BATCH].clone().requires_grad_(True)
    F.nll_loss(F.log_softmax(net(seen), dim=1), labels[:BATCH], reduction="sum").backward()

    u32 = lambda t: t.to(torch.uint32)
    tensors = {
        "images": images,
        "labels": u32(labels),
        "order": u32(order),
        "count": u32(count),
        "loss": torch.stack(losses),
        "logits": logits,
        "grads": torch.stack(grads),
        "eval_loss": eval_loss.reshape(1),
        "eval_logits": eval_logits,
        "eval_input_grad": seen.grad,
        **{name: torch.stack(rows) for name, rows in history.items()},
        **{f"kept.{name}": u32(mask.reshape(-1).nonzero().reshape(-1)) for name, mask in masks.items()},
    }
    about = {
        "params": [[name, list(p.shape)] for name, p in params.items()],
        "norms": list(norms),
        "depth": DEPTH,
        "width": WIDTH,
        "batch": BATCH,
        "lr": LR,
        "momentum": MOMENTUM,
        "weight_decay": DECAY,
        "nesterov": True,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
    }
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"about": json.dumps(about)})
    print(f"{path}: {stored(lambda p: p).numel()} stored of {sum(p.numel() for p in params.values())} parameters")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
