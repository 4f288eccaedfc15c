"""Makes tests/fixtures/metrics.json: metrics of made-up logits, scores and gradients, by PyTorch, scikit-learn and NumPy.

    python scripts/make_metrics_fixture.py tests/fixtures/metrics.json

The committed file was made with Python 3.11, PyTorch 2.15.0 (CPU), scikit-learn 1.9.1, NumPy 2.4.6.

What is computed by what: NLL and softmax by torch.nn.functional in float64; top-k by a stable sort (the lowest class first
among equal logits, which neither library promises), checked against scikit-learn where no logits are equal; ECE by a loop
over the bins; AUC by sklearn.metrics.roc_auc_score; gradients by torch.autograd in float64. Logits, images and gradients are
float32 values written as decimals that give them back exactly.
"""

import json
import sys

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, top_k_accuracy_score
from torch.nn import functional as F

BINS = [1, 2, 10, 15]


def decimals(array):
    """The shortest decimals that give float32 values back."""
    array = np.asarray(array, np.float32).reshape(-1)
    values = [float(str(v)) for v in array]
    assert np.array_equal(np.array(values).astype(np.float32), array)
    return values


def reliability(confidence, correct, bins):
    """[count, sum of confidences, right ones] of each bin (lo, hi], and the error."""
    rows, error = [], 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        rows.append([int(inside.sum()), float(confidence[inside].sum()), int(correct[inside].sum())])
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert sum(row[0] for row in rows) == len(confidence)
    return {"bins": bins, "value": float(error), "rows": rows}


def classification(name, logits, labels):
    logits, labels = np.asarray(logits, np.float32), np.asarray(labels, np.int64)
    z, y = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    order = np.argsort(-logits, axis=1, kind="stable")
    top = {k: float((order[:, :k] == labels[:, None]).any(1).mean()) for k in (1, 2, 5)}
    classes = logits.shape[1]
    if classes > 5 and all(len(set(row)) == classes for row in logits.tolist()):
        for k in top:
            assert abs(top[k] - top_k_accuracy_score(labels, logits, k=k, labels=range(classes))) < 1e-12
    confidence = F.softmax(z, 1).max(1).values.numpy()
    return {
        "name": name,
        "classes": classes,
        "logits": decimals(logits),
        "labels": labels.tolist(),
        "top": [[k, value] for k, value in top.items()],
        "nll": float(F.cross_entropy(z, y)),
        "confidence": confidence.tolist(),
        "ece": [reliability(confidence, order[:, 0] == labels, bins) for bins in BINS],
    }


def classifications(rng):
    """Cases that are hard in one way each."""

    def normal(n, classes, scale):
        return rng.normal(size=(n, classes)) * scale, rng.integers(0, classes, n)

    yield classification("ragged", *normal(77, 10, 3))
    yield classification("one image", *normal(1, 10, 1))
    yield classification("two classes", *normal(31, 2, 2))
    yield classification("one class", rng.normal(size=(5, 1)), np.zeros(5))
    yield classification("many classes", *normal(3, 257, 4))
    yield classification("ties", rng.integers(-1, 2, (64, 7)), rng.integers(0, 7, 64))
    # Margins of 200, right and wrong, and around where a probability in float64 becomes 1.
    margins = np.array([200, 200, 200, 40, 37, 36.5, 36, 30, 17, 1])
    logits = np.zeros((40, 4)) - 3
    labels = rng.integers(0, 4, 40)
    logits[np.arange(40), labels] += np.tile(margins, 4)
    labels[::3] = (labels[::3] + 1) % 4
    yield classification("saturated", logits, labels)
    # No image of class 3; class 6 is never the answer.
    logits, labels = normal(60, 8, 2)
    labels[labels == 3] = 4
    logits[:, 6] -= 50
    assert 3 not in labels and 6 in labels and 6 not in logits.argmax(1)
    yield classification("degenerate classes", logits, labels)
    # Confidences of exactly 1/k, the edges of bins: k equal logits, the others worth nothing.
    rows, labels = [], []
    for k in (1, 2, 3, 5, 6, 10, 15, 30):
        for shift in range(3):
            rows.append(np.roll(np.where(np.arange(30) < k, 0.0, -1e4), shift))
            labels.append(int(rng.integers(0, 30)))
    yield classification("on the edges", rows, labels)


def auroc(name, positive, negative):
    positive, negative = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    truth = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    value = float(roc_auc_score(truth, np.r_[positive, negative]))
    return {"name": name, "positive": positive.tolist(), "negative": negative.tolist(), "auroc": value}


def aurocs(rng):
    yield auroc("no ties", rng.normal(size=83) + 0.5, rng.normal(size=41))
    yield auroc("ties", rng.integers(0, 6, 90) / 6, rng.integers(-1, 5, 37) / 6)
    yield auroc("one against many", [0.5], rng.integers(0, 3, 36) / 2)
    yield auroc("apart", rng.random(9) + 1, rng.random(7))
    yield auroc("apart the other way", rng.random(9), rng.random(7) + 1)
    yield auroc("all equal", np.ones(5), np.ones(8))
    logits = torch.from_numpy(rng.normal(size=(50, 10)) * 60)
    confidence = F.softmax(logits, 1).max(1).values.numpy()
    assert (confidence == 1).sum() > 3
    yield auroc("saturated", confidence[:30], confidence[30:])


def fgsm(rng):
    """A linear model on 2-channel 3x3 images. The last image is right by a margin of 200; one weight column is zero."""
    n, channels, side, classes = 6, 2, 3, 4
    size = channels * side * side
    mean, std = np.array([0.4914, 0.25]), np.array([0.2023, 0.4])
    weight = rng.normal(size=(classes, size)).astype(np.float32)
    weight[:, 5] = 0
    shape = (n, channels, side, side)
    pixels = rng.integers(0, 256, shape)
    pixels[0, :, 0, :2], pixels[1, :, 0, :2] = 0, 255  # some that clipping holds
    per_channel = (1, channels, 1, 1)
    m, s = torch.tensor(mean).view(per_channel), torch.tensor(std).view(per_channel)
    images = ((torch.from_numpy(pixels) / 255.0 - m) / s).float()  # as a network gets them
    labels = torch.from_numpy(rng.integers(0, classes, n))
    w = torch.from_numpy(weight).double()

    def logits_of(x):
        z = x.double().reshape(n, size) @ w.T
        # A fixed push of one image: its label's logit is 200 above the others'.
        push = torch.zeros(n, classes, dtype=torch.float64)
        push[n - 1] = -z.detach()[n - 1]
        push[n - 1, labels[n - 1]] += 200
        return z + push

    def cross_entropy(z):
        # As F.cross_entropy, but with a gradient at any margin: softmax - onehot, which that one takes, is 0 at the label
        # from a margin of about 37 on, in float64 too.
        others = z.masked_fill(F.one_hot(labels, classes).bool(), -torch.inf).logsumexp(1)
        return F.softplus(others - z.gather(1, labels[:, None])[:, 0], threshold=1e9)

    def gradient_of(x, loss):
        x = x.clone().requires_grad_()
        loss(x).sum().backward()
        return x.grad

    pixel_values = images.double() * s + m
    gradient = gradient_of(images.double(), lambda x: cross_entropy(logits_of(x)))
    through = gradient_of(pixel_values, lambda p: cross_entropy(logits_of((p - m) / s)))  # the normalisation
    assert torch.equal(gradient.sign(), through.sign())
    plain = gradient_of(images.double(), lambda x: F.cross_entropy(logits_of(x), labels, reduction="none"))
    assert torch.allclose(plain[: n - 1], gradient[: n - 1], rtol=1e-9, atol=0)
    assert not torch.equal(plain[n - 1].sign(), gradient[n - 1].sign()), "what F.cross_entropy loses"
    flat = gradient.reshape(n, size).abs()
    active = torch.arange(size) != 5
    assert bool((flat[:, 5] == 0).all()) and bool((flat[:, active] > 1e-4 * flat.max(1, True).values).all())
    assert float(flat[n - 1].max()) < 1e-80, "nothing of it is left in float32"
    cases = []
    for epsilon in (8 / 255, 0.5):
        pixel = (pixel_values + epsilon * through.sign()).clamp(0, 1)
        low, high = (0 - m) / s, (1 - m) / s
        moved = images.double() + epsilon * gradient.sign()
        cases.append(
            {
                "epsilon": epsilon,
                "pixel": ((pixel - m) / s).reshape(-1).tolist(),
                "normalised": torch.minimum(torch.maximum(moved, low), high).reshape(-1).tolist(),
            }
        )
    return {
        "classes": classes,
        "plane": side * side,
        "mean": mean.tolist(),
        "std": std.tolist(),
        "weight": decimals(weight),
        "images": decimals(images),
        "labels": labels.tolist(),
        "logits": decimals(logits_of(images)),
        "signs": gradient.sign().reshape(-1).int().tolist(),
        "cases": cases,
    }


def gradient_norms(rng):
    """Gradients of a masked two-layer network's mean loss at the kept weights, and their norms, by PyTorch."""
    torch.manual_seed(3)
    masks = [torch.rand(12, 9) < 0.3, torch.rand(5, 12) < 0.6]
    weights = [torch.randn(mask.shape, dtype=torch.float64).mul(mask).requires_grad_() for mask in masks]
    x, y = torch.randn(7, 9, dtype=torch.float64), torch.randint(0, 5, (7,))
    F.cross_entropy(F.relu(x @ weights[0].T) @ weights[1].T, y).backward()
    active = [w.grad[mask] for w, mask in zip(weights, masks)]
    layers = [float(torch.linalg.vector_norm(g)) for g in active]
    return {
        "gradients": [g.tolist() for g in active],
        "layers": layers,
        "mean": float(np.mean(layers)),
        "global": float(torch.linalg.vector_norm(torch.cat(active))),
    }


def main(path):
    rng = np.random.default_rng(5)
    fixture = {
        "classification": list(classifications(rng)),
        "auroc": list(aurocs(rng)),
        "fgsm": fgsm(rng),
        "gradient_norms": gradient_norms(rng),
    }
    with open(path, "w") as out:
        # A case a line.
        for key, value in fixture.items():
            out.write("{" if key == "classification" else ",")
            lines = ",\n".join(map(json.dumps, value)) if isinstance(value, list) else json.dumps(value)
            out.write(f'"{key}":' + (f"[\n{lines}\n]" if isinstance(value, list) else f"\n{lines}") + "\n")
        out.write("}\n")


if __name__ == "__main__":
    main(sys.argv[1])
