#!/usr/bin/env python3
"""Times training steps in PyTorch on a GPU. Reads a JSON object a line, answers one a line; run.py talks to it.

A question: model, variant (variants.py), batch; and seconds to time, method and sparsity of masks, image (side, default
the network's own), keep (whether the network may stay on the device for the next question). An answer: milliseconds a
step, or `error`, with `oom` if it was memory.

A step is zero_grad, forward, cross-entropy, backward, SGD with Nesterov momentum 0.9 and weight decay 5e-4 (`fused`,
the fastest of PyTorch's), on one batch of random images that is already on the device. cuDNN chooses its algorithms by
measuring (`cudnn.benchmark`). After a warm-up, blocks of several steps are timed between two CUDA events each; the
figures are a block's time over its steps.
"""

import argparse
import gc
import json
import math
import os
import statistics
import sys
import time

import reused  # noqa: F401  the folder of nets and torch_step
import torch
import torch.nn.functional as F

import nets
import torch_step
from variants import VARIANTS

BLOCK_MS = 50  # so that what starts and ends a block does not show
BLOCKS_LEAST, BLOCKS_MOST, STEPS_LEAST = 5, 40, 3
WARMUP = 5  # 3 is what PyTorch asks for before a capture
SCALE = 1024.0  # where GradScaler begins: from its default of 65536 the first steps overflow and are skipped


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: for tests")
    device = torch.device(p.parse_args().device)
    torch.backends.cudnn.benchmark = True
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    peers = Peers(device)
    for line in sys.stdin:
        print(json.dumps(peers.answer(json.loads(line))), file=answers, flush=True)


class Peers:
    """The networks on the device."""

    def __init__(self, device):
        self._device, self._kept = device, {}

    def answer(self, question):
        others = len(self._kept)
        try:
            return self._timed(question)
        except Exception as e:  # whatever it is, it is this question's answer
            text = str(e).strip().splitlines()[0][:300] if str(e).strip() else type(e).__name__
            oom = isinstance(e, torch.OutOfMemoryError) or "out of memory" in text.lower()
            return {"error": text, "oom": oom, "others": others}

    def _timed(self, q):
        variant = VARIANTS[q["variant"]]
        # What is compiled serves both ways to run it, so that it is compiled once.
        key = (q["model"], "compiled" if variant.compiled else q["variant"], q["batch"])
        if any(model != q["model"] for model, _, _ in self._kept):
            self._kept.clear()
        network = self._kept.pop(key, None) or Network(q, self._device)
        step = network.replay if variant.graphed else network.step
        allow_tf32(variant)
        times = timed(step, self._device, q["seconds"])
        loss = network.loss()
        if not math.isfinite(loss):
            return {"error": f"the loss is {loss}: no time is reported for a wrong result"}
        if q.get("keep") or variant.compiled:
            self._kept[key] = network
        found = {
            "variant": q["variant"],
            "model": q["model"],
            "batch": q["batch"],
            **times,
            "loss": loss,
            "parameters": network.parameters,
            "maskable": network.maskable,
            "memory_bytes": network.memory_bytes,
            "torch": torch_facts(self._device),
        }
        if not q.get("keep"):
            network.shrink()
            del network, step  # before what they held is given back
            release(self._device)
        return found


class Network:
    """One network, its batch and its training step, warmed up."""

    def __init__(self, q, device):
        self._variant, self._device = VARIANTS[q["variant"]], device
        self._graph = self._graph_loss = self._loss = self.memory_bytes = None
        release(device)
        on_gpu = device.type == "cuda"
        before = torch.cuda.memory_allocated() if on_gpu else 0
        self._build(q)
        allow_tf32(self._variant)
        for _ in range(WARMUP):
            self.step()
        if on_gpu:
            torch.cuda.synchronize()
            self.memory_bytes = torch.cuda.max_memory_allocated() - before

    def _build(self, q):
        torch.manual_seed(0)
        with self._device:
            net, image, classes = nets.build(q["model"])
            side = q.get("image") or image[1]
            layout = torch.channels_last if self._variant.channels_last else torch.contiguous_format
            self._net = net.to(memory_format=layout).train()
            self._x = torch.randn(q["batch"], image[0], side, side).contiguous(memory_format=layout)
            self._y = torch.randint(0, classes, (q["batch"],))
        self.parameters = sum(p.numel() for p in net.parameters())
        self.maskable = sum(m.weight.numel() for m in torch_step.maskable(net))
        self._masks = []
        if self._variant.masked:
            self._masks = torch_step.masks(net, q["method"], q["sparsity"], below=0)
            torch_step.multiply(net, self._masks)
        self._sgd = torch.optim.SGD(
            net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
        )
        scaled = self._variant.precision == "fp16"
        self._scaler = torch.amp.GradScaler(self._device.type, init_scale=SCALE, enabled=scaled)
        self._loss_of = torch.compile(self._forward) if self._variant.compiled else self._forward

    def step(self):
        """The step as Python launches it."""
        self._sgd.zero_grad()
        loss = self._loss_of(self._x, self._y)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._sgd)
        self._scaler.update()
        torch_step.multiply(self._net, self._masks)
        self._loss = loss.detach()

    def replay(self):
        """The step as one CUDA graph, captured at the first call."""
        if self._graph is None:
            self._capture()
        self._graph.replay()
        self._loss = self._graph_loss

    def loss(self):
        return self._loss.item()

    def shrink(self):
        """Lets go of the graph and its memory, and of gradients; what was compiled stays."""
        self._graph = self._graph_loss = self._loss = None
        self._sgd.zero_grad()

    def _forward(self, x, y):
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self._variant.precision)
        with torch.autocast(self._device.type, dtype=half or torch.bfloat16, enabled=half is not None):
            return F.cross_entropy(self._net(x), y)

    def _capture(self):
        """Gradients are born in the graph's memory, so a replay overwrites them."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self._sgd.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self._graph, self._graph_loss = graph, self._loss


def timed(step, device, seconds):
    """Milliseconds a step: median, minimum and maximum of the blocks."""
    per_block = STEPS_LEAST
    estimate = block(step, device, per_block)
    per_block = min(1000, max(STEPS_LEAST, round(BLOCK_MS / max(estimate, 1e-3))))
    times, began = [], time.perf_counter()
    while len(times) < BLOCKS_LEAST or (time.perf_counter() - began < seconds and len(times) < BLOCKS_MOST):
        times.append(block(step, device, per_block))
    return {
        "step_ms_median": statistics.median(times),
        "step_ms_min": min(times),
        "step_ms_max": max(times),
        "blocks": len(times),
        "steps": per_block * len(times),
    }


def block(step, device, steps):
    """Milliseconds a step of `steps` steps together."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - began) * 1e3 / steps
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / steps


def allow_tf32(variant):
    allowed = variant.precision != "f32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def release(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def torch_facts(device):
    facts = {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    if device.type == "cuda":
        facts |= {"cudnn": torch.backends.cudnn.version(), "torch_device": torch.cuda.get_device_name()}
    return facts


if __name__ == "__main__":
    main()
