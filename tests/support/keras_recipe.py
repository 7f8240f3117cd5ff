"""The recipe of the porting guide: `keras_config` for who cannot install this package beside Keras."""

RECIPE = """
def keras_config(model):
    owner = {id(v): layer for layer in model._flatten_layers() for v in layer.weights}  # the innermost comes last
    weights = []
    for v in model.weights:
        layer, name = owner[id(v)], v.name
        stem = "depthwise" if type(layer).__name__.startswith("Depthwise") else name.removesuffix("_kernel")
        init = getattr(layer, f"{stem if name != 'bias' else name}_initializer", None)
        init = init or getattr(layer, f"{name}_initializer")
        config = {**init.get_config(), **({"seed": init.seed} if hasattr(init, "seed") else {})}
        weights.append({"layer": v.path.rpartition("/")[0], "class_name": type(layer).__name__, "name": name,
                        "shape": list(v.shape), "dtype": v.dtype, "equation": getattr(layer, "equation", None),
                        "unit_forget_bias": name == "bias" and getattr(layer, "unit_forget_bias", False),
                        "initializer": {"class_name": type(init).__name__, "config": config}})
    return {"weights": weights}
"""
