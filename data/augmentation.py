"""What an augmentation is: a small frozen object, called on a batch with its random draws.

    @dataclasses.dataclass(frozen=True)
    class Invert(Augmentation):
        probability: float = number(0.0, 1.0)

        def __call__(self, images, labels, draws):
            chosen = draws.uniform()[:, None, None, None] < self.probability
            return tf.where(chosen, 255 - images, images), labels

A line in `AUGMENTATIONS` (`data/augment.py`) makes it available as `--augment=invert:0.5`.
"""

import collections
import dataclasses
import re
import sys
import zlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf

from data.tracing import unconverted


def number(low: float, high: float, **kwargs) -> Any:
    """A dataclass field that takes numbers from `low` to `high`, both included."""
    return dataclasses.field(metadata={"bounds": (low, high)}, **kwargs)


class Seen(NamedTuple):
    """What a pipeline knows of the rows of a batch.

    Attributes:
        seed: int64 [2], of the run.
        size: number of examples of the split.
        numbers: number of the example of each row, int64 [rows].
        occurrences: which occurrence of that example it is, int64 [rows], from 0 (see
            `data/order.py`).
    """

    seed: tf.Tensor
    size: int
    numbers: tf.Tensor
    occurrences: tf.Tensor


class Draws:
    """Random numbers for the rows of one batch.

    Each stream is a function of the seed, the step, the stream's name and the row of the global
    batch alone. It does not depend on the other streams, on the number of replicas, or on which of
    them has the row.

    Args:
        seed: int64 [2], a seed for this step.
        rows: int64 [rows], rows of the global batch.
        global_batch_size: rows in the whole batch.
        seen: gives what is known of the rows; None if nothing is.
    """

    def __init__(
        self,
        seed: tf.Tensor,
        rows: tf.Tensor,
        global_batch_size: int,
        seen: Callable[[], "Seen"] | None = None,
    ):
        self._seed = seed
        self._rows = rows
        self._global_batch_size = global_batch_size
        self._seen = seen
        self._stream = ""
        self._uses = collections.Counter()

    @unconverted
    def stream(self, name: str) -> "Draws":
        """The stream of that name; a second call with the same name gives the stream "name/1"."""
        draws = Draws(self._seed, self._rows, self._global_batch_size, self._seen)
        draws._stream = f"{name}/{self._uses[name]}" if self._uses[name] else name
        self._uses[name] += 1
        draws._uses = self._uses
        return draws

    def _stream_seed(self, name: str, seed: tf.Tensor | None = None) -> tf.Tensor:
        key = zlib.crc32(f"{self._stream}:{name}".encode())
        # Kernels want seeds on the host, and each copy from a GPU waits for what it computes.
        with tf.device("CPU:0"):
            seed = self._seed if seed is None else seed
            return tf.random.experimental.stateless_fold_in(seed, tf.constant(key, tf.int64))

    @unconverted
    def uniform(self, *shape: int, name: str = "") -> tf.Tensor:
        """float32 [rows, *shape] in [0, 1).

        Args:
            shape: of the draw for one row; by default a scalar.
            name: tells several draws of one augmentation apart.
        """
        # Drawn for the whole batch, so that a row's draw does not depend on who has the row.
        shape = (self._global_batch_size, *shape)
        return tf.gather(tf.random.stateless_uniform(shape, self._stream_seed(name)), self._rows)

    @unconverted
    def of_example(self, name: str = "") -> tf.Tensor:
        """float32 [rows] in [0, 1): for an example the same in every epoch."""
        seen = self._seen()
        of_all = tf.random.stateless_uniform((seen.size,), self._stream_seed(name, seen.seed))
        return tf.gather(of_all, seen.numbers)

    def occurrences(self) -> tf.Tensor:
        """Which occurrence of its example each row is, int64 [rows], from 0.

        That is the epoch, unless sampling is balanced.
        """
        return self._seen().occurrences

    @unconverted
    def beta(self, alpha: float, name: str = "") -> tf.Tensor:
        """float32 [rows] in [0, 1] from the Beta(alpha, alpha) distribution."""
        # Two Gammas make a Beta. float64, and no NaN for 0 / 0, since small alphas underflow.
        gammas = tf.random.stateless_gamma(
            (self._global_batch_size, 2),
            self._stream_seed(name),
            alpha=tf.constant(alpha, tf.float64),
            dtype=tf.float64,
        )
        weights = tf.math.divide_no_nan(gammas[:, 0], tf.reduce_sum(gammas, axis=1))
        return tf.gather(tf.cast(weights, tf.float32), self._rows)


def _is_int(field: dataclasses.Field) -> bool:
    return field.type in (int, "int")


def _bounds(field: dataclasses.Field) -> tuple[float, float]:
    most = sys.float_info.max
    return field.metadata.get("bounds", (-most, most))


def accepted(field: dataclasses.Field) -> str:
    """What a field of an augmentation accepts, in words."""
    what = "an integer" if _is_int(field) else "a number"
    if "bounds" not in field.metadata:
        return what
    low, high = _bounds(field)
    return f"{what} from {low:g} to {high:g}"


def parse(field: dataclasses.Field, text: str) -> int | float:
    """The value of a field from its text; ValueError if it is no number of its type."""
    return int(text) if _is_int(field) else float(text)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Base class. The fields of a subclass are the values in its flag, in their order.

    Attributes:
        normalized: images must be normalized float32, so that 0 is the mean color; otherwise they
            may be of any dtype and range.
        soft_labels: labels must be float32 [batch, classes], one-hot or soft; otherwise int32
            [batch] or either.
        pairs: examples 0 and 1, 2 and 3, ... are combined, so the batch must be even.
        pixels: images must be uint8, of 1 or 3 channels, so it comes before those that are
            `normalized`.
    """

    normalized: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    pixels: ClassVar[bool] = False

    def __post_init__(self):
        for field in self.settings():
            value, (low, high) = getattr(self, field.name), _bounds(field)
            good = isinstance(value, int if _is_int(field) else (int, float))
            if isinstance(value, bool) or not good or not low <= value <= high:
                what = f"{field.name} of {self.name()} must be {accepted(field)}"
                raise ValueError(f"{what}, not {value!r}")

    @classmethod
    def name(cls) -> str:
        """The name of the class in the style of the table: random_erasing for RandomErasing."""
        return re.sub("(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def settings(cls) -> list[dataclasses.Field]:
        """The fields that are numbers, in their order."""
        return [x for x in dataclasses.fields(cls) if x.type in (int, float, "int", "float")]

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Raises ValueError if images of that shape cannot be augmented."""
        if self.pixels and image_shape[-1] not in (1, 3):
            raise ValueError(
                f"{self.name()} needs images of 1 or 3 channels, and these have {image_shape[-1]}"
            )

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, draws: Draws
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The augmented batch. It draws all its random numbers from `draws`.

        Args:
            images: [batch, height, width, channels].
            labels: int32 [batch], or float32 [batch, classes].
            draws: random numbers for the rows of the batch.

        Returns:
            Images and labels of the same shapes and dtypes.
        """
        raise NotImplementedError


class SourceCrop(Augmentation):
    """Base class of what cuts a box out of each original, before it is decoded and scaled.

    It is the first of its chain, and decides by the sizes of the originals alone.
    """

    def boxes(self, sizes: tf.Tensor, draws: Draws) -> tf.Tensor:
        """The boxes that are scaled to the size of the images.

        Args:
            sizes: int32 [batch, 2], height and width of each original in pixels, as it is shown.
            draws: random numbers for the rows of the batch.

        Returns:
            (top, left, height, width) in pixels, float32 [batch, 4], inside the originals.
        """
        raise NotImplementedError

    def __call__(self, images, labels, draws):
        """Nothing: the images have been cut."""
        return images, labels
