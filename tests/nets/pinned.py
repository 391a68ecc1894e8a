"""Sizes and costs of the project's nets with 1,000 classes, or 10 of 32x32 images."""

CIFAR = ("20", "32", "44", "56", "110")


# Nets that differ from another one here in the number of their blocks only.
DEEPER = (
    *("resnet34", "resnet101", "resnet152", "resnet101_v2", "resnet152_v2", "plain34"),
    *("resnet32", "resnet44", "resnet56", "resnet110", "plain32", "plain44", "plain56"),
    *(f"resnet{depth}_projection" for depth in (32, 44, 56, 110)),
)


def image_size(name):
    """Height and width of the paper's images; 224 for nets that are not the project's own."""
    number = name.removeprefix("resnet").removeprefix("plain").removesuffix("_projection")
    if name.startswith("inception10") or number in CIFAR:
        return 32
    if name.startswith(("inception_v3", "inception_v4", "inception_resnet")):
        return 299
    return 224


# Trainable and other parameters, and multiply-adds without auxiliary heads. Nets of a user need no
# entry.
PINNED = {
    "inception10": (119_642, 1_184, 12_240_128),
    "inception10_v2": (101_914, 1_376, 10_405_120),
    "inception10_v3": (73_946, 1_568, 7_521_536),
    "inception10_residual": (170_970, 2_336, 17_220_864),
    "inception10_frozen_norm": (119_642, 1_184, 12_240_128),
    "inception_v1": (13_378_280, 0, 1_582_671_872),
    "inception_v1_bn": (13_385_816, 15_072, 1_582_671_872),
    "inception_v2": (11_188_288, 19_904, 1_934_857_216),
    "inception_v3": (27_161_264, 36_224, 5_713_216_096),
    "inception_v4": (42_679_816, 63_168, 12_253_974_624),
    "inception_resnet_v1": (22_756_328, 27_040, 6_206_361_696),
    "inception_resnet_v2": (55_843_464, 60_544, 13_155_794_016),
    "resnet18": (11_689_512, 9_600, 1_814_073_344),
    "resnet34": (21_797_672, 17_024, 3_663_761_408),
    "resnet50": (25_557_032, 53_120, 3_857_973_248),
    "resnet101": (44_549_160, 105_344, 7_570_194_432),
    "resnet152": (60_192_808, 151_424, 11_282_415_616),
    "resnet50_v2": (25_568_360, 45_440, 3_482_255_360),
    "resnet101_v2": (44_577_896, 97_664, 7_194_476_544),
    "resnet152_v2": (60_236_904, 143_744, 10_906_697_728),
    "resnet20": (269_722, 1_376, 40_551_040),
    "resnet32": (464_154, 2_272, 68_862_592),
    "resnet44": (658_586, 3_168, 97_174_144),
    "resnet56": (853_018, 4_064, 125_485_696),
    "resnet110": (1_727_962, 8_096, 252_887_680),
    "resnet20_projection": (272_474, 1_568, 40_813_184),
    "resnet32_projection": (466_906, 2_464, 69_124_736),
    "resnet44_projection": (661_338, 3_360, 97_436_288),
    "resnet56_projection": (855_770, 4_256, 125_747_840),
    "resnet110_projection": (1_730_714, 8_288, 253_149_824),
    "plain18": (11_515_688, 7_808, 1_794_805_760),
    "plain34": (21_623_848, 15_232, 3_644_493_824),
    "plain20": (269_722, 1_376, 40_551_040),
    "plain32": (464_154, 2_272, 68_862_592),
    "plain44": (658_586, 3_168, 97_174_144),
    "plain56": (853_018, 4_064, 125_485_696),
}

# Published numbers of parameters, in millions, and their number of decimals.
PUBLISHED_PARAMETERS = {
    # tf.keras.applications: 23,851,784 with 34,432 moving statistics. Ours has 17,216 more, scales.
    "inception_v3": (23.82, 2),
    # BVLC's Caffe model without its auxiliary heads: 6,998,552.
    "inception_v1": (6.998552, 6),
    # Zoph et al. 2018, "Learning Transferable Architectures", table 2.
    "inception_v2": (11.2, 1),
    "inception_resnet_v2": (55.8, 1),
    # timm's results for inception_v4.
    "inception_v4": (42.68, 2),
    # torchvision's ResNets, which differ only in where a bottleneck has its stride.
    "resnet18": (11.69, 2),
    "resnet34": (21.80, 2),
    "resnet50": (25.56, 2),
    "resnet101": (44.55, 2),
    "resnet152": (60.19, 2),
    # He et al. 2015, table 6.
    "resnet20": (0.27, 2),
    "resnet32": (0.46, 2),
    "resnet44": (0.66, 2),
    "resnet56": (0.85, 2),
    "resnet110": (1.7, 1),
    # tf.keras.applications.
    "resnet50_v2": (25.568360, 6),
    "resnet101_v2": (44.577896, 6),
    "resnet152_v2": (60.236904, 6),
}

# Published multiply-adds, in millions.
PUBLISHED_FLOPS = {
    # He et al. 2015, table 1; figure 3 for the plain net.
    "resnet18": 1_800,
    "resnet34": 3_600,
    "resnet50": 3_800,
    "resnet101": 7_600,
    "resnet152": 11_300,
    "plain34": 3_600,
    # Li et al. 2017, "Pruning Filters for Efficient ConvNets", table 1.
    "resnet56": 125,
    "resnet110": 253,
    # Zoph et al. 2018, table 2.
    "inception_v2": 1_940,
    "inception_v3": 5_720,
    "inception_resnet_v2": 13_200,
    # timm's results for inception_v4.
    "inception_v4": 12_280,
}


def _grids(stem, *rows):
    return [("stem", stem), *rows]


_GOOGLENET = _grids(
    (28, 28, 192),
    ("inception_3a", (28, 28, 256)),
    ("inception_3b", (28, 28, 480)),
    ("pool_3", (14, 14, 480)),
    ("inception_4a", (14, 14, 512)),
    ("auxiliary_4a", (1000,)),
    ("inception_4b", (14, 14, 512)),
    ("inception_4c", (14, 14, 512)),
    ("inception_4d", (14, 14, 528)),
    ("auxiliary_4d", (1000,)),
    ("inception_4e", (14, 14, 832)),
    ("pool_4", (7, 7, 832)),
    ("inception_5a", (7, 7, 832)),
    ("inception_5b", (7, 7, 1024)),
)
_BN_INCEPTION = _grids(
    (28, 28, 192),
    ("inception_3a", (28, 28, 256)),
    ("inception_3b", (28, 28, 320)),
    ("inception_3c", (14, 14, 576)),
    ("inception_4a", (14, 14, 576)),
    ("inception_4b", (14, 14, 576)),
    ("inception_4c", (14, 14, 576)),
    ("inception_4d", (14, 14, 576)),
    ("inception_4e", (7, 7, 1024)),
    ("inception_5a", (7, 7, 1024)),
    ("inception_5b", (7, 7, 1024)),
)


def _three_grids(stem, a, b, c, *, auxiliary=False):
    """Shapes of nets with grids of 35x35, 17x17 and 8x8, given their channels."""
    head = [("auxiliary_b", (1000,))] if auxiliary else []
    return _grids(
        (35, 35, stem),
        ("inception_a", (35, 35, a)),
        ("reduction_a", (17, 17, b)),
        ("inception_b", (17, 17, b)),
        *head,
        ("reduction_b", (8, 8, c[0])),
        ("inception_c", (8, 8, c[1])),
    )


def _resnet(expansion):
    sizes = zip((56, 28, 14, 7), (64, 128, 256, 512), strict=True)
    stages = [(f"stage_{i}", (n, n, c * expansion)) for i, (n, c) in enumerate(sizes, start=1)]
    return _grids((56, 56, 64), *stages)


_SMALL_RESNET = _grids(
    (32, 32, 16), ("stage_1", (32, 32, 16)), ("stage_2", (16, 16, 32)), ("stage_3", (8, 8, 64))
)
_RESNET_V2 = _grids(
    (56, 56, 64),
    ("stage_1", (28, 28, 256)),
    ("stage_2", (14, 14, 512)),
    ("stage_3", (7, 7, 1024)),
    ("stage_4", (7, 7, 2048)),
    ("activation", (7, 7, 2048)),
)
_INCEPTION10 = _grids((32, 32, 16), ("stage_1", (16, 16, 64)), ("stage_2", (8, 8, 128)))


def shapes(name):
    """Name and output shape of each stage but the head."""
    if name.startswith("inception10"):
        return _INCEPTION10
    if image_size(name) == 32:
        return _SMALL_RESNET
    if name.startswith("inception_v1"):
        return _GOOGLENET
    if name.endswith("_v2") and name.startswith("resnet"):
        return _RESNET_V2
    if name.startswith("resnet") and int(name.removeprefix("resnet")) >= 50:
        return _resnet(4)
    if name.startswith(("resnet", "plain")):
        return _resnet(1)
    return {
        "inception_v2": _BN_INCEPTION,
        "inception_v3": _three_grids(192, 288, 768, (1280, 2048), auxiliary=True),
        "inception_v4": _three_grids(384, 384, 1024, (1536, 1536)),
        "inception_resnet_v1": _three_grids(256, 256, 896, (1792, 1792)),
        "inception_resnet_v2": _three_grids(320, 320, 1088, (2080, 1536)),
    }[name]
