#!/usr/bin/env python3
"""Times a training step in PyTorch on the CPU, prints one line of JSON. `compare.py` starts it; it also runs alone.

A step is zero_grad, forward, cross-entropy, backward, SGD with Nesterov momentum 0.9 and weight decay 5e-4, on one
batch of random images that stays in memory. After the warm-up, steps are timed until --min-steps and --seconds are
both reached.

Memory: VmRSS after all imports and before the network is built, and VmHWM, the peak, at the end.

Variants: eager       f32, channels_last
          compiled    the same under torch.compile
          bf16        the same as eager under autocast to bfloat16
          bf16-compiled  the same as compiled under autocast to bfloat16
          masked      eager; after each step the weights are multiplied by masks, the usual simulation of sparsity
          sparseprop  layers swapped by SparseProp's `swap_modules_with_sparse`, which leaves a layer dense where it
                      found that faster; contiguous, as its kernels want it. Neither fetched nor built here
"""

import argparse
import contextlib
import copy
import importlib
import json
import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import nets
from densities import METHODS, layer_counts

VARIANTS = ("eager", "compiled", "bf16", "bf16-compiled", "masked", "sparseprop")
COMPILED = ("compiled", "bf16-compiled")
SPARSEPROP_MOST = 0.2  # SparseProp swaps layers of a density strictly below this


def main():
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.set_num_interop_threads(1)
    swap = None
    if args.variant in COMPILED:
        importlib.import_module("torch._inductor.compile_fx")  # an import, so not to be counted as the network's memory
    if args.variant == "sparseprop":
        try:
            swap = importlib.import_module("sparseprop.utils").swap_modules_with_sparse
        except ImportError as e:
            print(json.dumps({"unavailable": f"not importable ({e})"}))
            return
    layout = torch.contiguous_format if args.variant == "sparseprop" else torch.channels_last
    start = status_bytes("VmRSS")

    net, image, classes = nets.build(args.model)
    net = net.to(memory_format=layout)
    x = torch.randn(args.batch, *image).contiguous(memory_format=layout)
    y = torch.randint(0, classes, (args.batch,))
    kept = []
    swapped = None
    if args.variant in ("masked", "sparseprop"):
        kept = masks(net, args.method, args.sparsity, below=SPARSEPROP_MOST if swap else 0)
        multiply(net, kept)
    if swap:
        net, swapped = with_sparseprop(net, swap, x, y)
        kept = []
        reset_peak()  # the check held two networks

    median, rest = timed(args, net, x, y, kept)
    print(
        json.dumps(
            {
                "variant": args.variant,
                "model": args.model,
                "batch": args.batch,
                "threads": args.threads,
                "step_ms_median": median,
                **rest,
                "start_rss_bytes": start,
                "peak_rss_bytes": status_bytes("VmHWM"),
                "swapped_layers": swapped,
                "torch": torch.__version__,
            }
        )
    )


def timed(args, net, x, y, kept):
    """Milliseconds of a step: the median; then the quartiles, minimum, steps timed and last loss."""
    # fused: one pass over weights, gradients and momentum, the fastest of SGD's implementations on a CPU.
    opt = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    half = args.variant in ("bf16", "bf16-compiled")

    def loss_of(x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return F.cross_entropy(net(x), y)

    if args.variant in COMPILED:
        loss_of = torch.compile(loss_of)

    def step():
        opt.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        opt.step()
        multiply(net, kept)
        return loss

    net.train()
    for _ in range(args.warmup):
        step()
    times = []
    began = now = time.perf_counter()
    while len(times) < args.min_steps or now - began < args.seconds:
        loss = step()
        then, now = now, time.perf_counter()
        times.append((now - then) * 1e3)
    if not math.isfinite(loss.item()):
        sys.exit(
            f"torch_step: the loss is {loss.item()} after {len(times)} steps; no time is reported for a wrong result"
        )
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return median, {
        "step_ms_q1": q1,
        "step_ms_q3": q3,
        "step_ms_min": min(times),
        "steps": len(times),
        "loss": loss.item(),
    }


def maskable(net):
    """Modules whose weight counts for sparsity: every convolution and the linear layer."""
    return [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


@torch.no_grad()
def masks(net, method, sparsity, below):
    """A random mask of ones and zeros, of exact count, for each maskable weight; one weight fewer if that brings the
    density below `below`: a layer of 80 % sparsity, rounded, is not to stay dense for one weight."""
    weights = [m.weight for m in maskable(net)]
    drawn = []
    for w, keep in zip(weights, layer_counts([tuple(w.shape) for w in weights], method, 1 - sparsity)):
        if 1 <= keep - 1 < below * w.numel() <= keep:
            keep -= 1
        flat = torch.zeros(w.numel(), device=w.device)
        flat[torch.randperm(w.numel(), device=w.device)[:keep]] = 1
        drawn.append(torch.empty_like(w).copy_(flat.view(w.shape)))
    return drawn


@torch.no_grad()
def multiply(net, kept):
    if kept:
        for module, mask in zip(maskable(net), kept):
            module.weight.mul_(mask)


def with_sparseprop(net, swap, x, y):
    """The network with SparseProp's layers, checked against the one it is made from, and "n of m" layers swapped."""
    before = len(maskable(net))
    with contextlib.redirect_stdout(sys.stderr):  # it prints a line a layer
        sparse = swap(copy.deepcopy(net), tuple(x.shape))
    results = []
    for each in (net, sparse):
        each.train()
        loss = F.cross_entropy(each(x), y)
        loss.backward()
        norms = [p.grad for m in each.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
        results.append(torch.cat([loss.detach().view(1), *(g.flatten() for g in norms)]))
        each.zero_grad()
    error = (results[0] - results[1]).norm() / results[0].norm()
    if not error <= 1e-3:
        sys.exit(
            f"torch_step: SparseProp's loss and gradients differ from the dense layers' by {error:.1e}, wanted 1e-3"
        )
    return sparse, f"{before - len(maskable(sparse))} of {before}"


def status_bytes(key):
    """VmRSS or VmHWM of this process."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def reset_peak():
    with open("/proc/self/clear_refs", "w", encoding="ascii") as f:
        f.write("5")


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--variant", choices=VARIANTS, required=True)
    p.add_argument("--model", default="resnet20")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--method", choices=METHODS, default="uniform")
    p.add_argument("--sparsity", type=float, default=0.9)
    p.add_argument("--seconds", type=float, default=5)
    p.add_argument("--min-steps", type=int, default=7)
    p.add_argument("--warmup", type=int, default=3)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    for name, least in (("batch", 1), ("threads", 1), ("min_steps", 2), ("warmup", 1)):
        if getattr(args, name) < least:
            p.error(f"--{name.replace('_', '-')}: wanted at least {least}, got {getattr(args, name)}")
    if not 0 <= args.sparsity < 1:
        p.error(f"--sparsity: wanted 0 up to, not including, 1, got {args.sparsity}")
    return args


if __name__ == "__main__":
    main()
