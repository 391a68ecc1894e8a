r"""The weights of a net as text, to be read by people and by NumPy.

    weights = {}
    for block in open("weights.txt", encoding="utf-8").read().split("\n\n")[1:]:
        name, shape, values = block.split("\n", 2)
        shape = [int(n) for n in shape.split()]
        weights[name] = np.array(values.split(), np.float32).reshape(shape)

Every value is written with as many digits as it takes to read the same float32 back.
"""

import pathlib

import numpy as np
import tensorflow as tf

from loops.variables import named_variables

_DIGITS = 9  # Enough for every float32.
_TITLE = """\
# {count} trainable variables, float32. Each is its name, its shape and, row by row along the last
# axis, its values; an empty line is before each. In Python:
#   weights = {{}}
#   for block in open("{file}", encoding="utf-8").read().split("\\n\\n")[1:]:
#       name, shape, values = block.split("\\n", 2)
#       shape = [int(n) for n in shape.split()]
#       weights[name] = np.array(values.split(), np.float32).reshape(shape)
"""


def write_weights(net: tf.keras.layers.Layer, path: pathlib.Path) -> int:
    """Writes name, shape and values of every trainable variable; returns their number.

    The names are those in checkpoints, such as `stage_1/block_0/conv/kernel`.
    """
    weights = {name: v for name, v in named_variables(net).items() if v.trainable}
    with path.open("w", encoding="utf-8") as file:
        file.write(_TITLE.format(count=len(weights), file=path.name))
        for name, variable in weights.items():
            values = variable.numpy().astype(np.float32)
            file.write(f"\n{name}\n{' '.join(map(str, values.shape))}\n")
            rows = values.reshape(-1, values.shape[-1] if values.ndim else 1)
            np.savetxt(file, rows, fmt=f"%.{_DIGITS}g")
    return len(weights)
