"""The nets that are compared, as descriptions that belong to no framework.

`keras_nets.py` and `torch_nets.py` make plain layers of them. A layer's name is its path in the
description, as `stage_1/block_0/residual/block_1`, which is also its path in this project's net: so
weights are copied by name.

torchvision's ResNet-50 and Inception V3 are other nets than this project's: the stride of a
bottleneck is in its 3x3 convolution, and average pooling counts the zeros of the padding.
"""

from typing import NamedTuple


class Conv(NamedTuple):
    """Convolution without a bias, BatchNorm and, by default, ReLU.

    Attributes:
        filters: output channels.
        size: height and width of the kernel.
        strides: in both directions.
        padding: "same", (size - 1) / 2 zeros on every side, or "valid".
        relu: whether ReLU follows.
    """

    filters: int
    size: tuple[int, int]
    strides: int = 1
    padding: str = "same"
    relu: bool = True


class Pool(NamedTuple):
    """Pooling over windows of 3x3 pixels; padding takes no part in a mean.

    Attributes:
        kind: "max" or "mean".
        strides: in both directions.
        padding: "same"; "valid"; or "zeros", one row of zeros on every side, which take part.
    """

    kind: str
    strides: int = 1
    padding: str = "same"


class Branches(NamedTuple):
    """Chains on one input, `branch_0`, `branch_1`, ..., concatenated by channel."""

    branches: tuple[tuple, ...]


class Residual(NamedTuple):
    """The sum of a chain and a shortcut, then ReLU.

    Attributes:
        residual: a chain.
        shortcut: a `Conv`; a `Subsampling`; or None for the input itself.
    """

    residual: tuple
    shortcut: tuple | None = None


class Subsampling(NamedTuple):
    """Every second pixel, and zeros for the additional channels."""

    filters: int


class Description(NamedTuple):
    """A net: a chain of named stages, global average pooling, dropout and one dense layer.

    Attributes:
        stages: by name. A stage is one of the above or a chain, a plain tuple of them.
        epsilon, momentum: of BatchNorm.
        dropout: rate before the dense layer.
        label_smoothing: of the loss.
    """

    stages: dict[str, tuple]
    epsilon: float = 1e-5
    momentum: float = 0.9
    dropout: float = 0.0
    label_smoothing: float = 0.0


def conv(filters: int, height: int, width: int | None = None, **settings) -> Conv:
    """A convolution with a kernel of height x width, or height x height."""
    return Conv(filters, (height, width or height), **settings)


def is_large(image_size: int) -> bool:
    """Whether images get the stem of the paper, and not the one for small images."""
    return image_size >= 96


def inception10(image_size: int) -> Description:
    """Of `nets/inception10.py`."""

    def block(filters, strides=1):
        def reduce():
            return conv(filters, 1, strides=strides)

        middle, wide = conv(filters, 3), conv(filters, 5)
        return Branches(
            ((reduce(),), (reduce(), middle), (reduce(), wide), (Pool("max"), reduce()))
        )

    stages = {f"stage_{i}": (block(n, 2), block(n)) for i, n in enumerate((16, 32), start=1)}
    return Description({"stem": _resnet_stem(16, image_size), **stages})


def _resnet_stem(filters: int, image_size: int) -> tuple:
    if is_large(image_size):
        return (conv(filters, 7, strides=2), Pool("max", 2, "zeros"))
    return conv(filters, 3)


def _resnet(image_size: int, blocks: tuple[int, ...], width: int, kind: str) -> Description:
    """Of `nets/resnet.py`.

    Args:
        image_size: in pixels.
        blocks: number in each stage.
        width: channels of the first stage.
        kind: "basic", "padded" for basic blocks with padded shortcuts, or "bottleneck".
    """
    stages, channels = {"stem": _resnet_stem(width, image_size)}, width
    for i, count in enumerate(blocks):
        filters = width * 2**i
        outputs = 4 * filters if kind == "bottleneck" else filters
        chain = []
        for number in range(count):
            strides = 2 if i and not number else 1
            shortcut = None
            if strides > 1 or outputs != channels:
                shortcut = conv(outputs, 1, strides=strides, relu=False)
                shortcut = Subsampling(outputs) if kind == "padded" else shortcut
            if kind == "bottleneck":
                first = (conv(filters, 1, strides=strides), conv(filters, 3))
                body = (*first, conv(outputs, 1, relu=False))
            else:
                body = (conv(filters, 3, strides=strides), conv(filters, 3, relu=False))
            chain.append(Residual(body, shortcut))
            channels = outputs
        stages[f"stage_{i + 1}"] = tuple(chain)
    return Description(stages)


def inception_v3(image_size: int) -> Description:
    """Of `nets/inception_v3.py` with the large stem, without the auxiliary head."""
    if not is_large(image_size):
        raise ValueError(f"image_size={image_size} must be at least 96 for inception_v3")
    down = {"strides": 2, "padding": "valid"}
    expanded = Branches(((conv(384, 1, 3),), (conv(384, 3, 1),)))

    def pool(filters):
        return (Pool("mean"), conv(filters, 1))

    def a(filters):
        middle, deep = (conv(48, 1), conv(64, 5)), (conv(64, 1), conv(96, 3), conv(96, 3))
        return Branches(((conv(64, 1),), middle, deep, pool(filters)))

    def b(n):
        middle = (conv(n, 1), conv(n, 1, 7), conv(192, 7, 1))
        deep = (conv(n, 1), conv(n, 7, 1), conv(n, 1, 7), conv(n, 7, 1), conv(192, 1, 7))
        return Branches(((conv(192, 1),), middle, deep, pool(192)))

    c = Branches(
        (
            (conv(320, 1),),
            (conv(384, 1), expanded),
            (conv(448, 1), conv(384, 3), expanded),
            pool(192),
        )
    )
    smaller = (Pool("max", 2, "valid"),)
    stages = {
        "stem": (
            *(conv(32, 3, **down), conv(32, 3, padding="valid"), conv(64, 3), *smaller),
            *(conv(80, 1), conv(192, 3, padding="valid"), *smaller),
        ),
        "inception_a": (a(32), a(64), a(64)),
        "reduction_a": Branches(
            ((conv(384, 3, **down),), (conv(64, 1), conv(96, 3), conv(96, 3, **down)), smaller)
        ),
        "inception_b": (b(128), b(160), b(160), b(192)),
        "reduction_b": Branches(
            (
                (conv(192, 1), conv(320, 3, **down)),
                (conv(192, 1), conv(192, 1, 7), conv(192, 7, 1), conv(192, 3, **down)),
                smaller,
            )
        ),
        "inception_c": (c, c),
    }
    return Description(stages, epsilon=1e-3, momentum=0.9, dropout=0.2, label_smoothing=0.1)


NETS = {
    "inception10": inception10,
    "resnet18": lambda size: _resnet(size, (2, 2, 2, 2), 64, "basic"),
    "resnet20": lambda size: _resnet(size, (3, 3, 3), 16, "padded"),
    "resnet50": lambda size: _resnet(size, (3, 4, 6, 3), 64, "bottleneck"),
    "inception_v3": inception_v3,
}
