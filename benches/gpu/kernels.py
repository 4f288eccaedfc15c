"""The stage `kernels`: single operations over the layers of the networks, beside the vendor's and our own dense."""

import engine
from peers import is_large
from schedule import Row

MODELS = ("resnet20", "vgg19", "resnet50", "wrn50-2")  # the layers of ResNet-56 and 110 are those of ResNet-20
OPS = ("conv_fwd", "conv_dgrad", "conv_wgrad")
OTHERS = ("linear", "bn", "sgd")
SMALL_BATCH, LARGE_BATCH = 128, 64
TIME_MS, LIMIT_S = 50, 150

CASES = (
    engine.Case("uniform", 0.9, "fp16"),
    engine.Case("uniform", 0.9, "fp16", engine.BLOCK),
    engine.Case("uniform", 0.95, "fp16"),
    engine.Case("uniform", 0.8, "fp16"),
    engine.Case("uniform", 0.9, "bf16"),
    engine.Case("uniform", 0.9, "tf32"),
)


def rows(binary, models, batch=None):
    """For every network the first case, then for every network the next: the deadline may end it anywhere."""
    found = []
    for case in CASES:
        for model in models:
            size = batch or (LARGE_BATCH if is_large(model) else SMALL_BATCH)
            for ops in (OPS, OTHERS):

                def run(limit_s, _, case=case, model=model, size=size, ops=ops):
                    return engine.kernels(binary, case, model, size, ops, TIME_MS, limit_s)

                what = f"{model} b{size}, {case.name()}, {' '.join(ops)}"
                asked = {"model": model, "batch": size, "case": case.name(), "ops": list(ops)}
                found.append(Row(what, what, what, asked, run, LIMIT_S))
    return found
