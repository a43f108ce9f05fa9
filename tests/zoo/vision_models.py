"""Families of timm and torchvision, on small images. A new one is a name in a list, or a line with what it needs."""

# mypy: disable-error-code="import-untyped, no-any-return"
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchvision_ops import define_missing_schemas
from zoo import Entry

# Quick to build and unlike each other; the others are marked slow.
FAST = frozenset(
    {
        *(
            "timm-resnet10t",
            "timm-convnext_atto",
            "timm-mobilenetv3_small_050",
            "timm-vit_tiny_patch16_224",
            "timm-mixer_s32_224",
        ),
        *("timm-davit_tiny", "timm-swinv2_tiny_window8_256", "timm-lcnet_035", "timm-gmlp_ti16_224"),
        *("torchvision-resnet18", "torchvision-mobilenet_v3_small", "torchvision-shufflenet_v2_x0_5", "torchvision-r3d_18"),
    }
)


def images(size: int, count: int = 4) -> Tensor:
    return torch.randn(count, 3, size, size)


def build_timm(name: str, **options: Any) -> nn.Module:
    define_missing_schemas()
    import timm

    return timm.create_model(name, num_classes=10, **options).train()


def build_torchvision(name: str, **options: Any) -> nn.Module:
    define_missing_schemas()
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options).train()


def narrow_head(name: str, positions: int) -> nn.Module:
    """AlexNet and VGG with 64 units where there are 4096, whose orthonormal matrices take half a minute."""
    net = build_torchvision(name)
    channels = net.get_submodule("features")(images(64)).shape[1]
    net.classifier = nn.Sequential(nn.Linear(channels * positions**2, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    return net


def small_vit() -> nn.Module:
    define_missing_schemas()
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64).train()


def timm_model(name: str, size: int = 64, *, not_weights: Mapping[str, str] | None = None, **options: Any) -> Entry:
    return Entry(
        f"timm-{name}",
        partial(build_timm, name, **options),
        partial(images, size),
        needs=("timm", "torchvision"),
        slow=f"timm-{name}" not in FAST,
        not_weights=not_weights or {},
    )


def torchvision_model(
    name: str,
    size: int = 64,
    *,
    batch: Callable[[], Any] | None = None,
    factory: Callable[[], nn.Module] | None = None,
    **options: Any,
) -> Entry:
    return Entry(
        f"torchvision-{name}",
        factory or partial(build_torchvision, name, **options),
        batch or partial(images, size),
        needs=("torchvision",),
        slow=f"torchvision-{name}" not in FAST,
    )


def clips() -> Tensor:
    return torch.randn(2, 3, 4, 32, 32)


ENTRIES = [
    # timm: convolutional
    timm_model("resnet10t"),
    timm_model("resnet18"),
    timm_model("resnetv2_18"),
    timm_model("resnext26ts"),
    timm_model("legacy_seresnet18"),
    timm_model("skresnet18"),
    timm_model("efficientnet_b0"),
    timm_model("mobilenetv3_small_050"),
    timm_model("mobilenetv4_conv_small_035"),
    timm_model("mnasnet_small"),
    timm_model("ghostnet_050"),
    timm_model("regnetx_002"),
    timm_model("regnetz_005"),
    timm_model("densenet121"),
    timm_model("dla34"),
    timm_model("cspresnet50"),
    timm_model("vovnet39a"),
    timm_model("hrnet_w18_small"),
    timm_model("res2net50_26w_4s"),
    timm_model("resnest14d"),
    timm_model("repvgg_a0"),
    timm_model("mobileone_s0"),
    timm_model("nf_resnet26"),
    timm_model("convnext_atto"),
    timm_model("convnextv2_atto"),
    timm_model("convmixer_768_32"),
    timm_model("rexnet_100"),
    timm_model("lcnet_035"),
    timm_model("tinynet_e"),
    timm_model("hardcorenas_a"),
    timm_model("inception_next_atto"),
    timm_model("starnet_s1"),
    timm_model("hgnetv2_b0"),
    timm_model("fasternet_t0"),
    timm_model("xception41"),
    timm_model("selecsls42b"),
    timm_model("dpn48b"),
    timm_model("darknet17"),
    timm_model("botnet26t_256", 256),
    timm_model("halonet26t", 256),
    timm_model("lambda_resnet26rpt_256", 256, not_weights={"*.pos_emb": "a table of relative positions, looked up"}),
    timm_model("eca_nfnet_l0"),
    # timm: attention and mixing
    timm_model("vit_tiny_patch16_224", img_size=64),
    timm_model("deit_tiny_distilled_patch16_224", img_size=64),
    timm_model("beit_base_patch16_224", img_size=64, embed_dim=48, depth=2, num_heads=4),
    timm_model("eva02_tiny_patch14_224", 56, img_size=56),
    timm_model("cait_xxs24_224", img_size=64, depth=2),
    timm_model("xcit_nano_12_p16_224", img_size=64),
    timm_model("swin_tiny_patch4_window7_224", 56, img_size=56, embed_dim=24, depths=(1, 1, 1, 1)),
    timm_model("swinv2_tiny_window8_256", img_size=64, embed_dim=24, depths=(1, 1, 1, 1)),
    timm_model("mixer_s32_224", img_size=64),
    timm_model("resmlp_12_224", img_size=64),
    timm_model("gmlp_ti16_224", img_size=64),
    timm_model("levit_128s", 224),
    timm_model("poolformer_s12"),
    timm_model("pvt_v2_b0"),
    timm_model("twins_svt_small"),
    timm_model("coat_tiny", 64, img_size=64),
    timm_model("crossvit_9_240", 240),
    timm_model("convit_tiny", 64, img_size=64),
    timm_model("pit_ti_224", 224),
    timm_model("tnt_s_legacy_patch16_224", 64, img_size=64),
    timm_model("visformer_tiny", 64, img_size=64),
    timm_model("volo_d1_224", 64, img_size=64),
    timm_model("edgenext_xx_small"),
    timm_model("mobilevit_xxs"),
    timm_model("mobilevitv2_050"),
    timm_model("coatnet_pico_rw_224", 64, img_size=64),
    timm_model("davit_tiny", embed_dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4)),
    timm_model("efficientformer_l1", 224),
    timm_model("efficientvit_b0"),
    timm_model("fastvit_t8"),
    timm_model("focalnet_tiny_srf"),
    timm_model("gcvit_xxtiny", 224),
    timm_model("hiera_tiny_224", 224),
    timm_model("mvitv2_tiny", 64, img_size=64),
    timm_model("nextvit_small"),
    timm_model("repvit_m0_9"),
    timm_model("sequencer2d_s", 64, img_size=64, layers=(1, 1, 1, 1)),
    timm_model("tiny_vit_5m_224", 224),
    timm_model("caformer_s18"),
    # torchvision
    torchvision_model("alexnet", factory=partial(narrow_head, "alexnet", 6)),
    torchvision_model("vgg11", factory=partial(narrow_head, "vgg11", 7)),
    torchvision_model("vgg13_bn", factory=partial(narrow_head, "vgg13_bn", 7)),
    torchvision_model("resnet18"),
    torchvision_model("resnext50_32x4d"),
    torchvision_model("densenet121"),
    torchvision_model("squeezenet1_1"),
    torchvision_model("googlenet", 96, init_weights=False),
    torchvision_model("inception_v3", 128, init_weights=False, aux_logits=False),
    torchvision_model("mobilenet_v2"),
    torchvision_model("mobilenet_v3_small"),
    torchvision_model("mnasnet0_5"),
    torchvision_model("shufflenet_v2_x0_5"),
    torchvision_model("efficientnet_b0"),
    torchvision_model("regnet_y_400mf"),
    torchvision_model("convnext_tiny"),
    torchvision_model("vit_b_16", factory=small_vit),
    torchvision_model("swin_t"),
    torchvision_model("swin_v2_t"),
    torchvision_model("maxvit_t", 224),
    torchvision_model("fcn_resnet50", weights_backbone=None),
    torchvision_model("deeplabv3_mobilenet_v3_large", weights_backbone=None),
    torchvision_model("lraspp_mobilenet_v3_large", weights_backbone=None),
    torchvision_model("r3d_18", batch=clips),
    torchvision_model("s3d", batch=lambda: torch.randn(2, 3, 16, 224, 224)),
    torchvision_model("raft_small", batch=lambda: (images(128, 2), images(128, 2))),
]
