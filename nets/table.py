"""A net as a table of its stages, and a fingerprint of its operations.

    print(table(trace(net, image_shape=(32, 32, 3))))

A run records the fingerprint, and compares it when it is resumed.
"""

import dataclasses
import math
from collections.abc import Iterator

import tensorflow as tf

from nets.dropout import dropout_seed
from nets.graph import Graph
from nets.layers import layer_by_layer
from nets.net import Net


@dataclasses.dataclass(frozen=True)
class StageRow:
    """One stage, or one auxiliary head.

    Attributes:
        name: attribute of the net that holds it; "net" for a net that is not a sequence of stages.
        output_shape: shape of the output without the batch axis.
        trainable: number of trainable parameters.
        not_trainable: number of other parameters, such as BatchNorm's moving statistics.
        flops: multiply-adds of convolutions and matrix products for one image.
        auxiliary: whether it is an auxiliary head, which runs in training only.
    """

    name: str
    output_shape: tuple[int, ...]
    trainable: int
    not_trainable: int
    flops: int
    auxiliary: bool


@dataclasses.dataclass(frozen=True)
class NetSummary:
    """Summary of one trace of a net's training pass.

    Attributes:
        rows: the stages in the order they run, each followed by the auxiliary heads on its output.
        fingerprint: 12 hexadecimal digits. They change when an operation, a hyperparameter inside
            the net or a shape does, and do not depend on names, on the Python code, on the devices
            or on the number of replicas.
        problem: what training would ignore, or a resume not repeat; empty if there is nothing.
    """

    rows: list[StageRow]
    fingerprint: str
    problem: str = ""


def trace(net: Net, image_shape: tuple[int, int, int]) -> NetSummary:
    """Traces the training pass of a built net once. No variable changes.

    FLOPs are multiply-adds, as in He et al. 2015. Pooling, BatchNorm, ReLU and additions do not
    count. A net that overrides `call` is one row, named "net".

    Args:
        net: with variables; under any strategy and dtype policy.
        image_shape: (height, width, channels).

    Raises:
        ValueError: the net has no variables yet.
    """
    if not net.built:
        raise ValueError("trace needs a net with variables; call the net on images first")
    # Makes Keras' generator for calls without a seed, so that the pass is seen to use its state.
    # Its own seed comes from Python's `random`, which `make_state` seeds before it builds a net.
    tf.keras.random.uniform(())
    variables = net.variables
    parts, outputs, updates, losses = [], [], [], []

    def training_pass(images, values):
        # Values in place of the variables: none is assigned, and those of a strategy are traced as
        # others are.
        state = list(zip(variables, values, strict=True))
        traced = 0
        scope = tf.keras.StatelessScope(state_mapping=state, collect_losses=True)
        with layer_by_layer(), scope:
            for name, tensors, returned in _stages(net, images):
                operations = tf.compat.v1.get_default_graph().get_operations()
                new = [operation.name for operation in operations[traced:]]
                traced = len(operations)
                parts.append((name, tuple(tensors[0].shape[1:]), new))
                outputs.extend(tensor.name for tensor in tensors if returned)
            for variable, value in state:
                updated = scope.get_current_value(variable)
                if updated is not value:
                    updates.append((value.name, updated.name))
            losses.extend(scope.losses)

    # In a new graph, no strategy is in scope.
    with tf.Graph().as_default():
        concrete = tf.function(training_pass, autograph=False).get_concrete_function(
            tf.TensorSpec((1, *image_shape), tf.float32),
            [tf.TensorSpec(variable.shape, variable.dtype) for variable in variables],
        )
    graph = Graph(concrete)
    return NetSummary(
        _rows(net, parts, graph),
        graph.fingerprint(outputs, updates),
        _problem(net, graph, len(outputs), has_losses=bool(net.losses or losses)),
    )


def _problem(net: Net, graph: Graph, num_outputs: int, *, has_losses: bool) -> str:
    """What training would ignore, or a resume not repeat."""
    if num_outputs > 1 and not net.auxiliary_weight:
        return (
            f"it returns {num_outputs} outputs in training, but those after the first have no "
            "weight in the loss; give it an auxiliary_weight"
        )
    if has_losses:
        return (
            "it has regularizers or calls add_loss, which would be ignored; use --weight_decay, or "
            "compute the term in loops/step.py"
        )
    if any(getattr(v, "constraint", None) is not None for v in net.trainable_variables):
        return "it has constraints of weights, which would be ignored"
    if graph.has_state_of_its_own:
        return (
            "it draws random numbers that a resume would not repeat, or has variables that no "
            "checkpoint would hold; for random numbers, use nets.dropout.uniform"
        )
    return ""


def _stages(net: Net, images) -> Iterator[tuple[str, list[tf.Tensor], bool]]:
    """Yields name, outputs, and whether the net returns them, of each stage and auxiliary head.

    They run in training, in the order of `Net.call`. A net that overrides it is one stage, "net".
    """
    seed = (0, 0)
    if type(net).call is not Net.call or not net.stage_names:
        yield "net", tf.nest.flatten(net(images, training=True, seed=seed)), True
        return
    with dropout_seed(seed):
        # Keras casts the inputs of a net when it is called.
        stages = net.run_stages(tf.cast(images, net.compute_dtype), training=True)
        for i, (name, output) in enumerate(stages, start=1):
            yield name, [output], i >= len(net.stage_names)


def _rows(net: Net, parts: list[tuple[str, tuple, list[str]]], graph: Graph) -> list[StageRow]:
    """Returns the rows of the parts, each auxiliary head after the stage whose output it takes.

    A part is the name, the output shape and the operations of a stage or an auxiliary head.
    """
    counted, rows = set(), []
    for name, shape, operations in parts:
        layer = getattr(net, name) if len(parts) > 1 else net
        own = [v for v in layer.variables if id(v) not in counted]  # Stages may share layers.
        counted |= {id(v) for v in own}
        row = StageRow(
            name=name,
            output_shape=shape,
            trainable=sum(math.prod(v.shape) for v in own if v.trainable),
            not_trainable=sum(math.prod(v.shape) for v in own if not v.trainable),
            flops=graph.multiply_adds(operations),
            auxiliary=name in net.auxiliary_heads,
        )
        rows.append(row)
    heads = {row.name: row for row in rows if row.auxiliary}
    ordered = []
    for row in rows:
        if not row.auxiliary:
            ordered.append(row)
            ordered += [heads[name] for stage, name in net.auxiliary if stage == row.name]
    return ordered


def table(summary: NetSummary) -> str:
    """Returns the rows as text, followed by their sums."""
    rows = summary.rows
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
    note = f"; the total excludes {heads}, used in training only" if heads else ""
    lines.append(f"FLOPs are multiply-adds for one image{note}.")
    not_trainable = sum(row.not_trainable for row in rows)
    lines.append(f"parameters: {trainable:,} trainable, {not_trainable:,} not")
    return "\n".join(lines)
