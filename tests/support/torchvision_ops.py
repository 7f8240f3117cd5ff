"""What lets torchvision's Python code be imported beside a torch that its compiled part was not built for.

PyPI's torchvision is compiled for PyPI's torch, with CUDA. Beside a torch for the CPU its library cannot be loaded, and
`import torchvision` then raises, since two operators that it registers shapes for do not exist; so do timm, which needs
it, and transformers, which uses it where it is installed. Their schemas alone, without any code, are enough: the models
are plain Python, and no test runs such an operator.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_KEPT = []  # a library's operators live as long as it does


def stand_in():
    """Define the two schemas if torchvision is installed and its compiled part cannot be loaded."""
    spec = find_spec("torchvision")
    if spec is None or _KEPT:
        return
    for path in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(path)
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)
