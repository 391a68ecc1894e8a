"""Multiply-adds and fingerprint of a traced graph."""

import hashlib
import math
from collections.abc import Iterable, Iterator

import tensorflow as tf

# Operations that return their first input. They do not enter the fingerprint.
_COPIES = ("Identity", "ReadVariableOp")
# Attributes that do not change what an operation computes, besides those that start with "_".
# TensorFlow derives the seeds of random operations from the number of operations in the graph.
_IGNORED_ATTRIBUTES = {
    *("container", "shared_name", "debug_name", "seed", "seed2"),
    *("config", "config_proto", "executor_type"),
}


# Operations with a random state of their own, which no checkpoint has.
_RANDOM = {
    *("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal"),
    *("ParameterizedTruncatedNormal", "RandomGamma", "RandomPoisson", "RandomPoissonV2"),
    *("RandomShuffle", "Multinomial", "NonDeterministicInts"),
}


class Graph:
    """The nodes of a traced function, and of the functions that it calls.

    Args:
        concrete: a traced tf.function.
    """

    def __init__(self, concrete: tf.types.experimental.ConcreteFunction):
        definition = concrete.graph.as_graph_def(add_shapes=True)
        self._functions = {f.signature.name: f for f in definition.library.function}
        self._body = _Body(definition.node)
        self._has_variables = any(v.dtype == tf.resource for v, _ in concrete.graph.captures)
        # Tensors that were created eagerly, such as a fixed filter, are placeholders in the graph.
        self._values = {
            placeholder.op.name: hashlib.sha256(value.numpy().tobytes()).hexdigest()
            for value, placeholder in concrete.graph.captures
            if value.dtype not in (tf.resource, tf.variant) and hasattr(value, "numpy")
        }

    def multiply_adds(self, names: Iterable[str]) -> int:
        """Returns the multiply-adds of convolutions and matrix products.

        The body of a loop counts once.

        Args:
            names: of operations in the graph.
        """
        return sum(self._multiply_adds(self._body, self._body.nodes[name]) for name in names)

    def _multiply_adds(self, body: "_Body", node) -> int:
        functions = [self._functions[name] for _, name in _called(node)]
        inner = [_Body.of_function(function) for function in functions]
        total = sum(self._multiply_adds(b, n) for b in inner for n in b.nodes.values())
        if node.op in _MULTIPLY_ADDS:
            inputs = [body.shape(reference) for reference in node.input]
            total += _MULTIPLY_ADDS[node.op](node, inputs, body.shape(node.name))
        return total

    @property
    def has_state_of_its_own(self) -> bool:
        """Whether it has variables, or draws random numbers from a state that no checkpoint has."""
        bodies = [self._body.nodes.values(), *(f.node_def for f in self._functions.values())]
        draws = any(node.op in _RANDOM for nodes in bodies for node in nodes)
        return draws or self._has_variables

    def fingerprint(self, outputs: list[str], updates: list[tuple[str, str]]) -> str:
        """Returns 12 hexadecimal digits that identify what the outputs and updates compute.

        They are a hash of the operations, their attributes, the shapes and values of constants and
        inputs, and the connections. Names, devices, the order of creation, and operations on which
        neither outputs nor updates depend have no influence.

        Args:
            outputs: names of tensors.
            updates: names of a variable's old value and of its new one. Their order is irrelevant.
        """
        walk = _Walk(self, self._body)
        parts = [walk.encode(outputs)]
        # Each update continues the numbering of the outputs.
        parts += sorted(walk.copy().encode(update) for update in updates)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]

    def operation(self, node) -> str:
        """Returns the type and the attributes of a node as text."""
        called = {name for name, _ in _called(node)}
        attributes = [
            (name, value.SerializeToString(deterministic=True).hex())
            for name, value in sorted(node.attr.items())
            if not (name.startswith("_") or name in _IGNORED_ATTRIBUTES or name in called)
        ]
        functions = [(name, self._function(function)) for name, function in _called(node)]
        return repr((node.op, attributes, functions, self._values.get(node.name)))

    def _function(self, name: str) -> str:
        """Returns a hash of a called function."""
        function = self._functions[name]
        inner = _Walk(self, _Body.of_function(function))
        outputs = [function.ret[output.name] for output in function.signature.output_arg]
        arguments = [argument.name for argument in function.signature.input_arg]
        return hashlib.sha256(inner.encode([*arguments, *outputs]).encode()).hexdigest()


class _Body:
    """Nodes by name, of a graph or of a function."""

    def __init__(self, nodes):
        self.nodes = {node.name: node for node in nodes}

    @classmethod
    def of_function(cls, function) -> "_Body":
        """Nodes of a FunctionDef, with a placeholder for each argument."""
        shapes = function.attr["_input_shapes"].list.shape
        arguments = []
        for i, argument in enumerate(function.signature.input_arg):
            node = tf.compat.v1.NodeDef(name=argument.name, op="Placeholder")
            node.attr["dtype"].type = argument.type
            if i < len(shapes):
                node.attr["_output_shapes"].list.shape.add().CopyFrom(shapes[i])
            arguments.append(node)
        return cls([*arguments, *function.node_def])

    def source(self, reference: str) -> tuple[str, str]:
        """The node and the output that a reference such as "conv:0" or "norm:y:0" points to."""
        name, _, output = reference.partition(":")
        node = self.nodes[name]
        if node.op in _COPIES:
            return self.source(node.input[0])
        return name, output or "0"

    def sources(self, name: str) -> list[tuple[str, str]]:
        """The sources of the inputs of a node. Control inputs are left out."""
        return [self.source(r) for r in self.nodes[name].input if not r.startswith("^")]

    def shape(self, reference: str) -> tuple[int, ...]:
        """The static shape of a tensor. Unknown dimensions, such as the batch, count as 1."""
        name, _, output = reference.partition(":")
        index = int(output.rpartition(":")[2] or 0)
        shapes = self.nodes[name].attr["_output_shapes"].list.shape
        return tuple(max(1, d.size) for d in shapes[index].dim) if index < len(shapes) else ()


class _Walk:
    """Numbers the nodes of a body in depth-first order, so that names do not matter."""

    def __init__(self, graph: Graph, body: _Body):
        self._graph = graph
        self._body = body
        self._numbers: dict[str, int] = {}

    def copy(self) -> "_Walk":
        other = _Walk(self._graph, self._body)
        other._numbers = dict(self._numbers)
        return other

    def encode(self, references: Iterable[str]) -> str:
        """Returns as text the nodes that some tensors depend on and that have no number yet."""
        roots = [self._body.source(reference) for reference in references]
        lines = [self._line(name) for root, _ in roots for name in self._new_nodes(root)]
        lines.append(repr(self._numbered(roots)))
        return "\n".join(lines)

    def _new_nodes(self, root: str) -> Iterator[str]:
        """Yields nodes without a number, inputs before their consumers, and numbers them."""
        stack = [root]
        while stack:
            name = stack[-1]
            new = [s for s, _ in self._body.sources(name) if s not in self._numbers]
            if name in self._numbers or not new:
                stack.pop()
                if name not in self._numbers:
                    self._numbers[name] = len(self._numbers)
                    yield name
            else:
                stack += reversed(new)

    def _line(self, name: str) -> str:
        operation = self._graph.operation(self._body.nodes[name])
        return f"{operation} {self._numbered(self._body.sources(name))}"

    def _numbered(self, sources) -> list[tuple[int, str]]:
        return [(self._numbers[name], output) for name, output in sources]


def _called(node) -> Iterator[tuple[str, str]]:
    """Yields the attribute and the name of each function that a node calls."""
    for name, value in sorted(node.attr.items()):
        functions = [value.func] if value.HasField("func") else value.list.func
        yield from ((name, function.name) for function in functions)


def _convolution(node, inputs, output) -> int:
    *per_output, _ = inputs[1]  # Height, width, input channels per group; output channels.
    return math.prod(output) * math.prod(per_output)


def _transposed_convolution(node, inputs, output) -> int:
    *per_input, _ = inputs[1]  # Height, width, output channels; input channels.
    return math.prod(inputs[2]) * math.prod(per_input)


def _depthwise(node, inputs, output) -> int:
    height, width, *_ = inputs[1]
    return math.prod(output) * height * width


def _matmul(node, inputs, output) -> int:
    transposed = node.attr["transpose_a"].b or node.attr["adj_x"].b
    return math.prod(output) * inputs[0][-2 if transposed else -1]


def _einsum(node, inputs, output) -> int:
    """The product of all axes; an ellipsis stands for axes that the output begins with."""
    labels, _, result = node.attr["equation"].s.decode().partition("->")
    sizes = {}
    for letters, shape in zip([*labels.split(","), result], [*inputs, output], strict=True):
        before, dots, after = letters.partition("...")
        sizes |= dict(zip(before, shape, strict=not dots))
        sizes |= dict(zip(reversed(after), reversed(shape), strict=False))
        if dots:
            sizes["..."] = math.prod(shape[len(before) : len(shape) - len(after)])
    return math.prod(sizes.values())


_MULTIPLY_ADDS = {
    "Conv2D": _convolution,
    "Conv2DBackpropInput": _transposed_convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "MatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Einsum": _einsum,
}
