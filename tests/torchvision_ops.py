"""Makes torchvision (and so timm and parts of transformers) importable beside a torch that its compiled operators do not fit.

The torchvision wheel of one index (CUDA) beside the torch wheel of another (CPU) fails on import: `operator torchvision::nms does
not exist`. Its models need none of these operators; only their schemas must exist.
"""

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

import torch

_ROI = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZE = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_GRAD = "Tensor grad, Tensor rois"
_POOLED = "float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, "
    "SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask"
)
# As in torchvision/csrc/ops/*.cpp of 0.28.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_ROI}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward({_GRAD}, {_POOLED}, {_SIZE}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_ROI}) -> (Tensor, Tensor)",
    f"_roi_pool_backward({_GRAD}, Tensor argmax, {_POOLED}, {_SIZE}) -> Tensor",
    f"ps_roi_align({_ROI}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({_GRAD}, Tensor channel_mapping, {_POOLED}, int sampling_ratio, {_SIZE}) -> Tensor",
    f"ps_roi_pool({_ROI}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({_GRAD}, Tensor channel_mapping, {_POOLED}, {_SIZE}) -> Tensor",
    f"deform_conv2d({_DEFORM}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@cache
def define_missing_schemas() -> "torch.library.Library | None":
    """Define torchvision's operators, without kernels, unless its compiled ones load. Call it before torchvision is imported.

    Returns the library, which holds the definitions as long as it lives (the cache keeps it); None if there was nothing to do.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _compiled_operators_load(Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def _compiled_operators_load(folder: Path) -> bool:
    compiled = next((path for path in sorted(folder.glob("_C.*")) if path.suffix in (".so", ".pyd")), None)
    if compiled is None:
        return False
    try:
        torch.ops.load_library(compiled)
    except OSError:
        return False
    return True


def environment_of_users() -> dict[str, str]:
    """For processes that find what this one finds, but for the zoo's packages."""
    path = os.pathsep.join(place for place in sys.path if place != str(_FOLDER))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


# Where the Makefile puts timm and torchvision, out of sight of everything but the zoo.
_FOLDER = Path(sys.prefix) / "vision" / "site-packages"
if _FOLDER.is_dir() and str(_FOLDER) not in sys.path:
    sys.path.append(str(_FOLDER))
    define_missing_schemas()  # transformers imports torchvision where it finds it
