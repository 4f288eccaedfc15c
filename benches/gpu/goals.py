"""What the first version is to reach on an H100, and whether it does. What was not measured is not met."""

import dataclasses
import typing

import engine
import figures

UNIFORM = ("uniform", 0.9, None, "fp16")
BLOCKS = ("uniform", 0.9, engine.BLOCK, "fp16")


@dataclasses.dataclass(frozen=True)
class Goal:
    model: str
    case: tuple
    text: str
    least: float
    rival: typing.Callable  # figures.Model -> figures.Figure or None


GOALS = (
    Goal(
        "resnet20", UNIFORM, "90 %: 3x PyTorch eager", 3, lambda m: m.fastest(lambda v: not (v.graphed or v.compiled))
    ),
    Goal(
        "resnet20",
        UNIFORM,
        "90 %: 1x CUDA-graphed PyTorch",
        1,
        lambda m: m.fastest(lambda v: v.graphed and not v.compiled),
    ),
    Goal("resnet50", UNIFORM, "90 %: 1x PyTorch's best dense", 1, lambda m: m.fastest(lambda v: True)),
    Goal("vgg19", BLOCKS, f"90 % {engine.BLOCK}: 1x our own dense", 1, lambda m: m.our_dense("fp16")),
    Goal("wrn50-2", BLOCKS, f"90 % {engine.BLOCK}: 1x our own dense", 1, lambda m: m.our_dense("fp16")),
)


def lines(models):
    """Network, goal, rival, ratio, verdict: of the goals about these networks (name -> figures.Model)."""
    found = []
    for goal in GOALS:
        if goal.model not in models:
            continue
        model = models[goal.model]
        rival = goal.rival(model)
        ratio = figures.faster(model.ours.get(goal.case), rival)
        if ratio is None:
            found.append([goal.model, goal.text, "-", "-", "not measured"])
            continue
        verdict = "met" if ratio.value >= goal.least else "missed"
        found.append([goal.model, goal.text, rival.row["title"], f"{ratio.value:.2f}", verdict])
    return found
