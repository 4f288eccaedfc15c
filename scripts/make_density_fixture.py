"""Makes tests/fixtures/densities.json: layer densities of every ratio that needs no data, by plain Python fractions.

    python3 scripts/make_density_fixture.py tests/fixtures/densities.json

The committed file was made with Python 3.11.7; only powers other than 1 use floating point. Networks and formulas are
written from the paper and its released code, with nothing from src/: sizes below, the formulas in `shares`.

File. One object a network: `layers`, of each layer in creation order the index of its kind; `kinds`, [shape, role] with
role "first", "inner" or "last"; `maskable`, all weights; `densities`: method -> overall density -> one number a kind, or
null where the layers with a density of their own take the whole budget or more. Methods: uniform, uniform-plus, er,
erk-POWER, erk-plus-LAST.
"""

import json
import sys
from fractions import Fraction
from math import prod

DENSITIES = ["0.05", "0.1", "0.2", "0.3", "0.5", "0.7", "0.9"]


def small_resnet(depth, width):
    """6D+2 layers of 3x3, 1x1 shortcuts where the width doubles (paper, CIFAR)."""
    shapes, inputs = [(width, 3, 3, 3)], width
    for segment in range(3):
        outputs = width * 2**segment
        for _ in range((depth - 2) // 6):
            shapes += [(outputs, inputs, 3, 3), (outputs, outputs, 3, 3)]
            shapes += [(outputs, inputs, 1, 1)] if inputs != outputs else []
            inputs = outputs
    return shapes + [(10, inputs)]


def vgg(counts):
    shapes, inputs = [], 3
    for count, outputs in zip(counts, [64, 128, 256, 512, 512]):
        for _ in range(count):
            shapes.append((outputs, inputs, 3, 3))
            inputs = outputs
    return shapes + [(10, 512)]


def large_resnet(blocks, bottleneck, factor=1):
    shapes, inputs = [(64, 3, 7, 7)], 64
    for segment, count in enumerate(blocks):
        width = 64 * 2**segment
        outputs = 4 * width if bottleneck else width
        for block in range(count):
            if bottleneck:
                inner = factor * width
                shapes += [(inner, inputs, 1, 1), (inner, inner, 3, 3), (outputs, inner, 1, 1)]
            else:
                shapes += [(width, inputs, 3, 3), (width, width, 3, 3)]
            if block == 0 and inputs != outputs:
                shapes.append((outputs, inputs, 1, 1))
            inputs = outputs
    return shapes + [(1000, inputs)]


NETWORKS = {
    "resnet20": small_resnet(20, 16),
    "resnet32": small_resnet(32, 16),
    "resnet56": small_resnet(56, 16),
    "resnet110": small_resnet(110, 16),
    "resnet20-8": small_resnet(20, 8),
    "vgg11": vgg([1, 1, 2, 2, 2]),
    "vgg16": vgg([2, 2, 3, 3, 3]),
    "vgg19": vgg([2, 2, 4, 4, 4]),
    "resnet18": large_resnet([2, 2, 2, 2], False),
    "resnet34": large_resnet([3, 4, 6, 3], False),
    "resnet50": large_resnet([3, 4, 6, 3], True),
    "resnet101": large_resnet([3, 4, 23, 3], True),
    "wrn50-2": large_resnet([3, 4, 6, 3], True, 2),
}


def solve(scores, sizes, rest):
    """One factor for all scores, so that the densities keep `rest` weights; what it lifts above 1 is dense."""
    dense = set()
    while len(dense) < len(sizes):
        open_layers = [l for l in range(len(sizes)) if l not in dense]
        left = rest - sum(sizes[l] for l in dense)
        epsilon = left / sum(scores[l] * sizes[l] for l in open_layers)
        top = max(scores[l] for l in open_layers)
        if epsilon * top <= 1:
            return [1 if l in dense else epsilon * scores[l] for l in range(len(sizes))]
        dense |= {l for l in open_layers if scores[l] == top}
    return [1] * len(sizes)


def pinned(shapes, density, pins, score):
    """Densities with some layers' given; None where these take everything."""
    sizes = [prod(s) for s in shapes]
    others = [l for l in range(len(shapes)) if l not in pins]
    rest = density * sum(sizes) - sum(d * sizes[l] for l, d in pins.items())
    if rest <= 0:
        return None
    found = solve([score(shapes[l]) for l in others], [sizes[l] for l in others], rest)
    found = dict(zip(others, found)) | pins
    return [found[l] for l in range(len(shapes))]


def uniform(_):
    return Fraction(1)


def er(shape):
    return Fraction(shape[0] + shape[1], shape[0] * shape[1])


def erk(power):
    def score(shape):
        base = Fraction(sum(shape), prod(shape))
        return base if power == 1 else Fraction(float(base) ** power)

    return score


def methods(shapes, density):
    first, last = 0, len(shapes) - 1
    fifth = Fraction(1, 5)
    yield "uniform", pinned(shapes, density, {}, uniform)
    yield "uniform-plus", pinned(shapes, density, {first: Fraction(1), last: max(density, fifth)}, uniform)
    yield "er", pinned(shapes, density, {}, er)
    for power in [0.5, 1, 2]:
        yield f"erk-{power:g}", pinned(shapes, density, {}, erk(power))
    for given in ["1", "0.5", "0.2"]:
        yield f"erk-plus-{given}", pinned(shapes, density, {last: Fraction(given)}, erk(1))


def network(shapes):
    roles = ["first"] + ["inner"] * (len(shapes) - 2) + ["last"]
    kinds = list(dict.fromkeys(zip(shapes, roles)))
    layers = [kinds.index(kind) for kind in zip(shapes, roles)]
    densities = {}
    for written in DENSITIES:
        density, total = Fraction(written), sum(map(prod, shapes))
        for method, found in methods(shapes, density):
            if found is not None:
                kept = sum(d * prod(s) for d, s in zip(found, shapes))
                assert abs(kept - density * total) <= total * 1e-9, (method, written)
                found = [round(float(found[layers.index(k)]), 9) for k in range(len(kinds))]
            densities.setdefault(method, {})[written] = found
    return {"maskable": total, "layers": layers, "kinds": kinds, "densities": densities}


def main():
    found = {name: network(shapes) for name, shapes in NETWORKS.items()}
    text = ",\n".join(f'"{name}":' + json.dumps(net, separators=(",", ":")) for name, net in found.items())
    with open(sys.argv[1], "w", encoding="ascii") as file:
        file.write("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main()
