"""The networks that the paper names, one row each: what users type, where the weights are, how images are shown.

    dino_vitb16         DINO ViT-B/16            D =  768   timm                the paper's default
    mocov3_vitb16       MoCo-v3 ViT-B/16         D =  768   its authors' file
    ibot_vitl16         iBOT ViT-L/16            D = 1024   its authors' file   the paper writes ViT-L/14
    dinov2_vitg14       DINOv2 ViT-g/14          D = 1536   timm
    openclip_vitbigg14  OpenCLIP ViT-bigG/14     D = 1280   OpenCLIP            the paper writes ViT-G/14
    dinov2              DINOv2 ViT-L/14          D = 1024   timm                the detector of FDD

All give their normalized class token (OpenCLIP: the projected image embedding) of images of 224 pixels, resized
bicubically and normalized; features are raw, not brought to unit length. No SHA-256 of these files was known with
certainty when the table was written, which is what None says: `weight_files` then holds on to that of the first use.

Source: method.md 1.1, 4.2 and 8 (row 24). The authors' addresses are those of their release pages.
"""

from dataclasses import dataclass

from cedm_ray.features.network import Transform
from cedm_ray.features.weight_files import WebFile

IMAGENET_224 = Transform(side=224, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedNetwork:
    """One row. title: what it is called in print. dim: D.

    timm: name of the model in timm, whose pretrained weights are taken unless `file` names others; None for OpenCLIP.
    openclip: OpenCLIP's name and tag, or None. file: the weights where neither package has them. ignored: names in
    the file that are not the network's. dinov2_positions: whether its position embedding is brought to the 16 x 16
    patches of 224 pixels as DINOv2's own code does it.
    """

    title: str
    dim: int
    timm: str | None = None
    openclip: tuple[str, str] | None = None
    file: WebFile | None = None
    ignored: tuple[str, ...] = ("head",)
    dinov2_positions: bool = False


PUBLISHED = {
    "dino_vitb16": PublishedNetwork(title="DINO ViT-B/16", dim=768, timm="vit_base_patch16_224.dino"),
    "mocov3_vitb16": PublishedNetwork(
        title="MoCo-v3 ViT-B/16",
        dim=768,
        timm="vit_base_patch16_224",
        file=WebFile(
            name="mocov3-vit-b-300ep.pth.tar",
            url="https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar",
        ),
    ),
    "ibot_vitl16": PublishedNetwork(
        title="iBOT ViT-L/16",
        dim=1024,
        timm="vit_large_patch16_224",
        file=WebFile(
            name="ibot-vitl16-checkpoint_teacher.pth",
            url="https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot/vitl_16/"
            "checkpoint_teacher.pth",
        ),
        ignored=("head", "masked_embed"),
    ),
    "dinov2_vitg14": PublishedNetwork(
        title="DINOv2 ViT-g/14",
        dim=1536,
        timm="vit_giant_patch14_dinov2.lvd142m",
        ignored=("mask_token",),
        dinov2_positions=True,
    ),
    "openclip_vitbigg14": PublishedNetwork(
        title="OpenCLIP ViT-bigG/14 (laion2b)", dim=1280, openclip=("ViT-bigG-14", "laion2b_s39b_b160k")
    ),
    "dinov2": PublishedNetwork(
        title="DINOv2 ViT-L/14",
        dim=1024,
        timm="vit_large_patch14_dinov2.lvd142m",
        ignored=("mask_token",),
        dinov2_positions=True,
    ),
}
