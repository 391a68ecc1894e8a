"""A net as a table: what each stage gives out, holds and costs.

Synopsis:

    print(table(net, image_shape=(32, 32, 3)))
"""

import dataclasses
import math

import tensorflow as tf

from nets.net import Net


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One stage, or one auxiliary head.

    Attributes:
        name: attribute of the net that holds it.
        output_shape: without the batch axis.
        trainable: number of trainable parameters.
        not_trainable: number of other ones (BatchNorm's moving statistics).
        flops: multiply-adds of its convolutions and dense layers for one image.
        auxiliary: whether it is an auxiliary head, which only training runs.
    """

    name: str
    output_shape: tuple[int, ...]
    trainable: int
    not_trainable: int
    flops: int
    auxiliary: bool


def _count(variables) -> int:
    return sum(math.prod(v.shape) for v in variables)


def _multiply_adds(graph: tf.Graph) -> int:
    """Multiply-adds of the convolutions and matrix products in a traced graph."""
    total = 0
    for op in graph.get_operations():
        if op.type in ("Conv2D", "DepthwiseConv2dNative"):
            height, width, inputs, outputs = op.inputs[1].shape
            # A depthwise kernel's last axis is the multiplier: its output has inputs * outputs.
            per_pixel = height * width * inputs * outputs
            total += math.prod(op.outputs[0].shape[1:3]) * per_pixel
        elif op.type == "MatMul":
            total += math.prod(op.inputs[1].shape)
    return int(total)


def _row(name: str, stage, spec: tf.TensorSpec, *, auxiliary: bool):
    """The row of a stage, and what it gives."""
    concrete = tf.function(lambda x: stage(x, training=False)).get_concrete_function(spec)
    output = concrete.structured_outputs
    row = StageRow(
        name=name,
        output_shape=tuple(output.shape[1:]),
        trainable=_count(stage.trainable_variables),
        not_trainable=_count(stage.non_trainable_variables),
        flops=_multiply_adds(concrete.graph),
        auxiliary=auxiliary,
    )
    return row, tf.TensorSpec(output.shape, output.dtype)


def stage_rows(net: Net, image_shape: tuple[int, int, int]) -> list[StageRow]:
    """A row for each stage of a built net, in the order they run, auxiliary heads where they part.

    FLOPs are multiply-adds, as He et al. 2015 count them; pooling, BatchNorm, ReLU and additions
    are left out.
    """
    rows = []
    spec = tf.TensorSpec((1, *image_shape), tf.float32)
    for name, stage in net.stages.items():
        row, spec = _row(name, stage, spec, auxiliary=False)
        rows.append(row)
        for origin, head in net.auxiliary:
            if origin == name:
                rows.append(_row(head, getattr(net, head), spec, auxiliary=True)[0])
    return rows


def table(net: Net, image_shape: tuple[int, int, int]) -> str:
    """The rows as text, ending with the sums."""
    rows = stage_rows(net, image_shape)
    cells = [("stage", "output", "parameters", "FLOPs")]
    for row in rows:
        shape = " x ".join(map(str, row.output_shape))
        cells.append((row.name, shape, f"{row.trainable:,}", f"{row.flops:,}"))
    trainable = sum(row.trainable for row in rows)
    flops = sum(row.flops for row in rows if not row.auxiliary)
    cells.append(("total", "", f"{trainable:,}", f"{flops:,}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {count:>{widths[2]}}  {cost:>{widths[3]}}"
        for name, shape, count, cost in cells
    ]
    heads = ", ".join(row.name for row in rows if row.auxiliary)
    only = f"; their total is without {heads}, which only training runs" if heads else ""
    lines.append(f"FLOPs are multiply-adds for one image{only}.")
    not_trainable = sum(row.not_trainable for row in rows)
    lines.append(f"parameters: {trainable:,} trainable, {not_trainable:,} not")
    return "\n".join(lines)
