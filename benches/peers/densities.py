"""How many weights each layer keeps, for the PyTorch side of the comparison. The engine has its own, exact version."""

METHODS = ("uniform", "erk")


def layer_densities(shapes, method, density):
    """Density of each layer, from the weights' shapes (outputs, inputs[, taps high, taps wide]).

    uniform: all alike. erk: in proportion to (sum of the shape) / (product of the shape); a layer that would pass 1
    stays dense and the others share what is left, so that the sum of density x size is kept.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density: wanted above 0 and at most 1, got {density}")
    if method == "uniform":
        return [density] * len(shapes)
    if method != "erk":
        raise ValueError(f"method: wanted one of {', '.join(METHODS)}, got {method}")
    sizes = [_product(s) for s in shapes]
    weights = [sum(s) for s in shapes]  # score x size
    budget = density * sum(sizes)
    dense = set()
    while len(dense) < len(shapes):
        sparse = [i for i in range(len(shapes)) if i not in dense]
        scale = (budget - sum(sizes[i] for i in dense)) / sum(weights[i] for i in sparse)
        top = max(weights[i] / sizes[i] for i in sparse)
        if scale * top <= 1:
            return [1.0 if i in dense else scale * weights[i] / sizes[i] for i in range(len(shapes))]
        dense |= {i for i in sparse if weights[i] / sizes[i] == top}
    return [1.0] * len(shapes)


def layer_counts(shapes, method, density):
    """Weights that each layer keeps: the nearest whole number, at least one."""
    densities = layer_densities(shapes, method, density)
    return [max(1, round(d * _product(s))) for s, d in zip(shapes, densities)]


def _product(shape):
    n = 1
    for side in shape:
        n *= side
    return n
