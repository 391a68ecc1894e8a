"""The augmentations, and the text that composes them: `--augment=crop:4,flip,mixup:0.2|cutmix:1`.

The functions on pixels draw no random numbers: draws come in as uniform numbers in [0, 1), so the
same draws give the same pixels. Images are [batch, height, width, channels].
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from data.augmentation import Augmentation, Draws, accepted, number, parse
from data.source import DataError

MAX_PIXELS = 4096
_ALPHA = (0.001, 1000.0)


def crop(images: tf.Tensor, draws: tf.Tensor, padding: int) -> tf.Tensor:
    """Shifts each image by up to `padding` pixels; the border is filled by reflection.

    Pad-and-crop as in He et al. 2015, section 4.2, with reflection instead of zeros.

    Args:
        images: any dtype; `padding` must be smaller than height and width.
        draws: float32 [batch, 2], for the vertical and the horizontal shift.
        padding: pixels.
    """
    for axis in (1, 2):
        size = images.shape[axis]
        offsets = tf.cast(draws[:, axis - 1] * (2 * padding + 1), tf.int32) - padding
        rows = tf.abs(tf.range(size) + offsets[:, None])
        rows = tf.minimum(rows, 2 * (size - 1) - rows)
        images = tf.gather(images, rows, axis=axis, batch_dims=1)
    return images


def flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Mirrors the images whose draw, float32 [batch], is below a half, left to right."""
    return tf.where(draws[:, None, None, None] < 0.5, images[:, :, ::-1], images)


def _boxes(draws: tf.Tensor, sides: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Masks, bool [batch, height, width, 1], of boxes with uniform centers, cut at the border.

    Args:
        draws: float32 [batch, 2], for the centers.
        sides: float32 [batch, 2], height and width of each box in pixels.
        size: height and width of the image in pixels.
    """
    inside = []
    for axis, length in enumerate(size):
        center = tf.floor(draws[:, axis] * length)
        start = center - tf.floor(sides[:, axis] / 2)
        position = tf.range(length, dtype=tf.float32)
        after = position >= start[:, None]
        inside.append(after & (position < (start + sides[:, axis])[:, None]))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def cutout(images: tf.Tensor, draws: tf.Tensor, side: int) -> tf.Tensor:
    """Sets a square of each image to 0 (DeVries & Taylor 2017).

    The center is uniform over the image, so part of the square may lie outside.

    Args:
        images: float32, normalized, so that 0 is the mean color.
        draws: float32 [batch, 2], for the centers.
        side: of the square, in pixels.
    """
    sides = tf.fill(tf.shape(draws), float(side))
    return tf.where(_boxes(draws, sides, images.shape[1:3]), 0.0, images)


def swap_neighbours(x: tf.Tensor) -> tf.Tensor:
    """Swaps rows 0 and 1, 2 and 3, ...: each example's partner in mixup and cutmix.

    Batches are shuffled, so neighbours are as random as any pair, and a worker with an even number
    of rows finds the partners among its own. The batch must be even.
    """
    pairs = tf.reshape(x, (-1, 2, *x.shape[1:]))
    return tf.reshape(pairs[:, ::-1], tf.shape(x))


def mixup(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Blends each example with its partner (Zhang et al. 2017).

    Args:
        images: float32.
        labels: float32 [batch, classes], one-hot or soft.
        weights: float32 [batch], the weight of the example itself.
    """
    pixels, classes = weights[:, None, None, None], weights[:, None]
    mixed = pixels * images + (1 - pixels) * swap_neighbours(images)
    return mixed, classes * labels + (1 - classes) * swap_neighbours(labels)


def cutmix(
    images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor, kept: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pastes a box of its partner into each image (Yun et al. 2019).

    The labels are weighted by the area that is actually pasted.

    Args:
        images: float32.
        labels: float32 [batch, classes], one-hot or soft.
        draws: float32 [batch, 2], for the centers of the boxes.
        kept: float32 [batch], fraction of the area that is not pasted over, unless the box
            is cut at the border.
    """
    height, width = images.shape[1:3]
    sides = tf.sqrt(1 - kept)[:, None] * tf.constant([height, width], tf.float32)
    boxes = _boxes(draws, tf.floor(sides), (height, width))
    weights = 1 - tf.reduce_mean(tf.cast(boxes, tf.float32), axis=(1, 2))
    mixed = tf.where(boxes, swap_neighbours(images), images)
    return mixed, weights * labels + (1 - weights) * swap_neighbours(labels)


@dataclasses.dataclass(frozen=True)
class Crop(Augmentation):
    """Random shift by up to `padding` pixels, the border reflected."""

    padding: int = number(0, MAX_PIXELS)

    def check(self, image_shape):
        height, width, _ = image_shape
        if self.padding >= min(height, width):
            raise ValueError(
                f"padding of crop must be smaller than the images, which are {height}x{width}"
            )

    def __call__(self, images, labels, draws):
        return crop(images, draws.uniform(2), self.padding), labels


@dataclasses.dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrors half of the images left to right."""

    def __call__(self, images, labels, draws):
        return flip(images, draws.uniform()), labels


@dataclasses.dataclass(frozen=True)
class Cutout(Augmentation):
    """Sets a square with sides of `side` pixels to the mean color."""

    normalized = True
    side: int = number(0, MAX_PIXELS)

    def __call__(self, images, labels, draws):
        return cutout(images, draws.uniform(2), self.side), labels


@dataclasses.dataclass(frozen=True)
class Mixup(Augmentation):
    """Blends pairs of examples; the weight is drawn from Beta(alpha, alpha)."""

    normalized, soft_labels, pairs = True, True, True
    alpha: float = number(*_ALPHA)

    def __call__(self, images, labels, draws):
        return mixup(images, labels, draws.beta(self.alpha))


@dataclasses.dataclass(frozen=True)
class CutMix(Augmentation):
    """Pastes boxes between pairs of examples; the area kept is drawn from Beta(alpha, alpha)."""

    normalized, soft_labels, pairs = True, True, True
    alpha: float = number(*_ALPHA)

    def __call__(self, images, labels, draws):
        return cutmix(images, labels, draws.uniform(2, name="box"), draws.beta(self.alpha))


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "crop": Crop,
    "flip": Flip,
    "cutout": Cutout,
    "mixup": Mixup,
    "cutmix": CutMix,
}


@dataclasses.dataclass(frozen=True)
class OneOf(Augmentation):
    """Applies one of several augmentations to each example, all equally likely."""

    options: tuple[Augmentation, ...]

    normalized = property(lambda self: any(x.normalized for x in self.options))
    soft_labels = property(lambda self: any(x.soft_labels for x in self.options))
    pairs = property(lambda self: any(x.pairs for x in self.options))

    def check(self, image_shape):
        for option in self.options:
            option.check(image_shape)

    def __call__(self, images, labels, draws):
        choice = tf.cast(draws.uniform() * len(self.options), tf.int32)
        results = [x(images, labels, draws.stream(stream_name(x))) for x in self.options]
        images, labels = results[0]
        for i, (other_images, other_labels) in enumerate(results[1:], start=1):
            chosen = choice == i
            images = tf.where(chosen[:, None, None, None], other_images, images)
            labels = tf.where(_like(chosen, labels), other_labels, labels)
        return images, labels


def _like(flags: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Flags [batch] with the rank of x, [batch, ...]."""
    return tf.reshape(flags, (-1, *(1 for _ in x.shape[1:])))


def stream_name(augmentation: Augmentation) -> str:
    """The name of an augmentation's random stream: its name in the table."""
    if isinstance(augmentation, OneOf):
        return "|".join(map(stream_name, augmentation.options))
    for name, kind in AUGMENTATIONS.items():
        if type(augmentation) is kind:
            return name
    return type(augmentation).__name__.lower()


def parse_augment(text: str) -> tuple[Augmentation, ...]:
    """The augmentations that a text such as "crop:4,flip,mixup:0.2|cutmix:1" describes.

    They are applied in their order. A name is followed by the values of its fields, separated by
    colons; `|` separates augmentations of which each example gets one; "none" is no augmentation.

    Raises:
        DataError: a name is unknown, or a value is missing, superfluous or out of bounds.
    """
    if text.strip() == "none":
        return ()
    parts = [part.strip() for part in text.split(",")]
    if "none" in parts:
        raise DataError(f"--augment={text}: none must stand alone")
    if "" in parts:
        raise DataError(f"--augment={text}: a name is missing; write none for no augmentation")
    chain = []
    for part in parts:
        options = tuple(_parse_one(option.strip()) for option in part.split("|"))
        chain.append(options[0] if len(options) == 1 else OneOf(options))
    return tuple(chain)


def _parse_one(text: str) -> Augmentation:
    name, *values = text.split(":")
    if name not in AUGMENTATIONS:
        known = ", ".join(AUGMENTATIONS)
        raise DataError(f"--augment={text}: no augmentation is called {name!r}; use {known}, none")
    kind = AUGMENTATIONS[name]
    fields = kind.settings()
    required = [x for x in fields if x.default is dataclasses.MISSING]
    if not len(required) <= len(values) <= len(fields):
        form = ":".join([name, *(x.name.upper() for x in fields)])
        raise DataError(f"--augment={text}: write {form}")
    arguments = {}
    for field, value in zip(fields, values, strict=False):
        try:
            arguments[field.name] = parse(field, value)
        except ValueError:
            what = f"{field.name} of {name} must be {accepted(field)}"
            raise DataError(f"--augment={text}: {what}") from None
    try:
        return kind(**arguments)
    except ValueError as error:
        raise DataError(f"--augment={text}: {error}") from None


def format_augment(augmentations: Sequence[Augmentation]) -> str:
    """The text that `parse_augment` turns into these augmentations."""
    return ",".join(map(_format_one, augmentations)) or "none"


def _format_one(augmentation: Augmentation) -> str:
    if isinstance(augmentation, OneOf):
        return "|".join(map(_format_one, augmentation.options))
    values = [getattr(augmentation, field.name) for field in augmentation.settings()]
    texts = [repr(value).removesuffix(".0") for value in values]
    return ":".join([stream_name(augmentation), *texts])


__all__ = ["AUGMENTATIONS", "Augmentation", "Draws", "OneOf", "format_augment", "parse_augment"]
