"""The ways to train in PyTorch that this engine is measured beside. No torch here."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    """f32: no TF32 anywhere. tf32: TF32 in convolutions and matrix products. fp16, bf16: autocast; fp16 with a
    GradScaler. `masked`: dense weights, multiplied by masks after each optimiser step."""

    title: str
    precision: str
    graphed: bool = False
    compiled: bool = False
    masked: bool = False

    @property
    def channels_last(self):
        """f32 and tf32 as a plain script has them, in PyTorch's default layout."""
        return self.precision in ("fp16", "bf16")


VARIANTS = {
    "graphed-fp16": Variant("PyTorch CUDA graph, AMP fp16", "fp16", graphed=True),
    "amp-fp16": Variant("PyTorch eager, AMP fp16", "fp16"),
    "eager-tf32": Variant("PyTorch eager, TF32", "tf32"),
    "eager-f32": Variant("PyTorch eager, f32, no TF32", "f32"),
    "graphed-bf16": Variant("PyTorch CUDA graph, AMP bf16", "bf16", graphed=True),
    "amp-bf16": Variant("PyTorch eager, AMP bf16", "bf16"),
    "graphed-tf32": Variant("PyTorch CUDA graph, TF32", "tf32", graphed=True),
    "masked-fp16": Variant("PyTorch eager, AMP fp16, masks multiplied", "fp16", masked=True),
    "masked-graphed-fp16": Variant("PyTorch CUDA graph, AMP fp16, masks multiplied", "fp16", graphed=True, masked=True),
    "compiled-fp16": Variant("PyTorch compiled, AMP fp16", "fp16", compiled=True),
    "compiled-graphed-fp16": Variant("PyTorch compiled, CUDA graph, AMP fp16", "fp16", graphed=True, compiled=True),
}
