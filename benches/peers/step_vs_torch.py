#!/usr/bin/env python3
"""One training step, this engine sparse and dense against PyTorch dense and mask-multiplying, interleaved.

    python3 benches/peers/step_vs_torch.py --python VENV/bin/python [--pairs 5] [--threads 2]

Every round runs, in processes of their own: PyTorch dense, PyTorch with masks, this engine sparse, this engine dense,
all ResNet-20, batch 128, 1x28x28, 10 classes, f32. PyTorch times steps on random images already in memory (forward,
backward, SGD with Nesterov momentum; channels_last; median of --steps). The engine trains one epoch of its built-in
images, so its time per step also holds data loading and augmentation. Printed: medians over the rounds, minima, and the
ratio to PyTorch dense, round by round. VENV needs torch; nothing is fetched.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile

TORCH = r"""
import json, sys, time, statistics
import torch, torch.nn as nn, torch.nn.functional as F
mode, threads, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
torch.manual_seed(0)

class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.c1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False); self.b1 = nn.BatchNorm2d(cout)
        self.c2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False); self.b2 = nn.BatchNorm2d(cout)
        self.cut = None if stride == 1 else nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))
    def forward(self, x):
        y = self.b2(self.c2(F.relu(self.b1(self.c1(x)))))
        return F.relu(y + (x if self.cut is None else self.cut(x)))

class Net(nn.Module):
    def __init__(self, depth=20, width=16, channels=1, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False); self.bn = nn.BatchNorm2d(width)
        blocks, cin = [], width
        for segment in range(3):
            for i in range((depth - 2) // 6):
                cout = width << segment
                blocks.append(Block(cin, cout, 2 if segment and i == 0 else 1)); cin = cout
        self.blocks = nn.Sequential(*blocks); self.fc = nn.Linear(cin, classes)
    def forward(self, x):
        return self.fc(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))

net = Net().to(memory_format=torch.channels_last)
opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
masked = [(p, (torch.rand_like(p) < 0.1).float()) for p in net.parameters() if p.dim() > 1] if mode == "masked" else []
x = torch.randn(128, 1, 28, 28).to(memory_format=torch.channels_last)
y = torch.randint(0, 10, (128,))
times = []
for i in range(steps + 3):
    t = time.perf_counter()
    opt.zero_grad(); F.cross_entropy(net(x), y).backward(); opt.step()
    with torch.no_grad():
        for p, m in masked:
            p.mul_(m)
    if i >= 3:
        times.append((time.perf_counter() - t) * 1e3)
print(json.dumps({"ms": statistics.median(times), "version": torch.__version__}))
"""


def torch_ms(args, mode):
    out = subprocess.run([args.python, "-c", TORCH, mode, str(args.threads), str(args.steps)],
                         check=True, capture_output=True, text=True).stdout
    return json.loads(out)["ms"]


def engine_ms(args, *settings):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "run")
        sets = [a for s in settings for a in ("--set", s)]
        subprocess.run([args.engine, "train", "--quiet", "--device", "cpu", "--epochs", "1", "--threads", str(args.threads),
                        "--set", "schedule.kind=cosine", "--out", out, *sets], check=True, stdout=subprocess.DEVNULL)
        records = [json.loads(line) for line in open(os.path.join(out, "metrics.jsonl"))]
        rate = next(r["images_per_s"] for r in records if r["split"] == "train")
        return 128 / rate * 1e3


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--engine", default="target/release/sparse-engine")
    p.add_argument("--python", default=sys.executable)
    p.add_argument("--pairs", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=20)
    args = p.parse_args()
    runs = {
        "PyTorch dense": lambda: torch_ms(args, "dense"),
        "PyTorch masked": lambda: torch_ms(args, "masked"),
        "engine ERK 80 %": lambda: engine_ms(args, "sparsity=0.8"),
        "engine ERK 90 %": lambda: engine_ms(args, "sparsity=0.9"),
        "engine ERK 95 %": lambda: engine_ms(args, "sparsity=0.95"),
        "engine uniform 90 %": lambda: engine_ms(args, "sparsity=0.9", "method=uniform"),
        "engine dense": lambda: engine_ms(args, "method=dense", "sparsity=0"),
    }
    ms = {name: [] for name in runs}
    for pair in range(args.pairs):
        for name, run in runs.items():
            ms[name].append(run())
        print(f"round {pair + 1}: " + ", ".join(f"{n} {v[-1]:.1f} ms" for n, v in ms.items()), file=sys.stderr)
    print("| | step ms: median (min-max) | / PyTorch dense, median of rounds (min-max) |\n|---|---|---|")
    for name, v in ms.items():
        r = [a / b for a, b in zip(v, ms["PyTorch dense"])]
        print(f"| {name} | {statistics.median(v):.1f} ({min(v):.1f}-{max(v):.1f}) "
              f"| {statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f}) |")


if __name__ == "__main__":
    main()
