"""Recomputes what `sparse-engine eval --json` says from the logits that `--save-logits` left, and compares.

    sparse-engine eval RUN --save-logits eval.npz --json > eval.json
    python scripts/check_eval.py eval.npz eval.json

Shares no code with the engine: NumPy, SciPy (log-softmax) and scikit-learn (AUC). Every figure must agree to
1e-6 (--tolerance) and every count exactly; exit code 1 and a line for each that does not.

Arrays of the .npz: logits float32 [n, classes], labels int64 [n], indices int64 [n]; ood0_logits, ood1_logits, ... for the
entries of "ood", with ood0_inside, ... (rows of logits that they are compared with, where these are not all); fgsm0_logits,
... for those of "fgsm", whose images have the labels of labels. All in the order of the JSON.
Keys of the JSON: n, accuracy, top5, nll, ece {bins, value, reliability [{lo, hi, count, confidence, accuracy}]}, and where
they were asked for ood [{n, inside, auroc}] and fgsm [{accuracy, zero_gradient_share}]. The last one does not follow from
logits: it is only checked to be a fraction. Confidence and accuracy of a bin without images are null. Other keys are not
looked at.
"""

import argparse
import json
import sys

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score


def confidence(logits):
    """Largest softmax probability: 1 / (1 + odds against it), which is rounded once near 1, where ties decide the AUC."""
    z = logits.astype(np.float64)
    z = np.sort(z - z.max(1, keepdims=True), axis=1)
    return 1 / (1 + np.exp(z[:, :-1]).sum(1))


def right(logits, labels, k):
    """Whether the label is among the k largest logits, the lowest class first among equal ones."""
    return (np.argsort(-logits, axis=1, kind="stable")[:, :k] == labels[:, None]).any(1)


def auroc(positive, negative):
    truth = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    return roc_auc_score(truth, np.r_[positive, negative])


class Check:
    def __init__(self, tolerance):
        self.tolerance, self.done, self.faults = tolerance, 0, []

    def compare(self, what, got, want, tolerance=None):
        self.done += 1
        tolerance = self.tolerance if tolerance is None else tolerance
        number = isinstance(got, (int, float)) and not isinstance(got, bool)
        same = got is None if want is None else number and abs(got - want) <= tolerance
        if not same:
            self.faults.append(f"{what}: the JSON says {got}, the logits {want}")

    def ece(self, said, logits, labels):
        bins = said["bins"]
        p, correct = confidence(logits), right(logits, labels, 1)
        value = 0.0
        self.compare("ece.reliability: bins", len(said["reliability"]), bins, 0)
        for i, row in enumerate(said["reliability"]):
            lo, hi = i / bins, (i + 1) / bins
            inside = (p > lo) & (p <= hi)
            means = [float(x[inside].mean()) if inside.any() else None for x in (p, correct)]
            if inside.any():
                value += inside.mean() * abs(means[1] - means[0])
            at = f"ece.reliability[{i}]"
            self.compare(f"{at}.lo", row["lo"], lo, 0)
            self.compare(f"{at}.hi", row["hi"], hi, 0)
            self.compare(f"{at}.count", row["count"], int(inside.sum()), 0)
            self.compare(f"{at}.confidence", row["confidence"], means[0])
            self.compare(f"{at}.accuracy", row["accuracy"], means[1])
        self.compare("ece.value", said["value"], value)


def check(arrays, said, tolerance):
    check = Check(tolerance)
    logits, labels, indices = arrays["logits"], arrays["labels"], arrays["indices"]
    n = len(labels)
    wanted = (np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.int64))
    if (logits.dtype, labels.dtype, indices.dtype) != wanted or logits.ndim != 2 or len(logits) != n or indices.shape != (n,):
        sys.exit(f"logits {logits.dtype}{logits.shape}, labels {labels.dtype}{labels.shape}: wanted (n, classes), (n), (n)")
    check.compare("indices: different images", len(set(indices.tolist())), n, 0)
    check.compare("n", said["n"], n, 0)
    check.compare("accuracy", said["accuracy"], right(logits, labels, 1).mean())
    check.compare("top5", said["top5"], right(logits, labels, 5).mean())
    likelihoods = log_softmax(logits.astype(np.float64), axis=1)[np.arange(n), labels]
    check.compare("nll", said["nll"], -float(likelihoods.mean()))
    check.ece(said["ece"], logits, labels)
    for i, entry in enumerate(said.get("ood") or []):
        others = arrays[f"ood{i}_logits"]
        check.compare(f"ood[{i}].n", entry["n"], len(others), 0)
        rows = f"ood{i}_inside"
        inside = logits[arrays[rows]] if rows in arrays else logits
        check.compare(f"ood[{i}].inside", entry["inside"], len(inside), 0)
        check.compare(f"ood[{i}].auroc", entry["auroc"], auroc(confidence(inside), confidence(others)))
    for i, entry in enumerate(said.get("fgsm") or []):
        attacked = arrays[f"fgsm{i}_logits"]
        check.compare(f"fgsm[{i}]: images", len(attacked), n, 0)
        check.compare(f"fgsm[{i}].accuracy", entry["accuracy"], right(attacked, labels, 1).mean())
        share = entry["zero_gradient_share"]
        check.compare(f"fgsm[{i}].zero_gradient_share, a fraction", share, min(max(share, 0.0), 1.0), 0)
    return check


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logits", help=".npz of --save-logits")
    parser.add_argument("json", help="what eval --json printed")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    args = parser.parse_args()
    with open(args.json) as file, np.load(args.logits) as arrays:
        try:
            done = check(arrays, json.load(file), args.tolerance)
        except KeyError as missing:
            sys.exit(f"missing: {missing.args[0]}")
    print("\n".join(done.faults) or f"{done.done} figures agree to {args.tolerance:g}")
    sys.exit(bool(done.faults))


if __name__ == "__main__":
    main()
