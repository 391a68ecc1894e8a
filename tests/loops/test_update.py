"""The update that XLA compiles against the plain one, and when it is compiled."""

import types

import numpy as np
import pytest
import tensorflow as tf

from loops.optimizer import OPTIMIZERS
from loops.settings import StepSettings
from loops.update import StateUpdate, xla_compiles
from tests.loops.helpers import Statistics, assert_close, examples, make_state, take_steps

SETTINGS = {
    "clip_norm": 0.3,
    "weight_decay": 0.01,
    "ema_decay": 0.9,
    "rate_multipliers": (0.5, 1.0),
}


def copies(state):
    """Every variable of a state, on every replica."""
    variables = [v.value for part in (state.net, state.ema_net) for v in part.variables]
    variables += [v.value for v in state.optimizer.variables]
    variables += [*state.window.values(), *state.guard.values()]
    if state.loss_scale is not None:
        variables += [state.loss_scale.scale, state.loss_scale.good_steps]
    return [copy.numpy() for v in variables for copy in getattr(v, "values", [v])]


def trained(strategy, optimizer, batches, *, compiled, loss_scale=False, **settings):
    """A state after some updates."""
    state = make_state(strategy, Statistics, optimizer, 0.01, ema=True, loss_scale=loss_scale)
    settings = {**SETTINGS, "decoupled_decay": OPTIMIZERS[optimizer].decoupled, **settings}
    take_steps(strategy, state, batches, compile_update=compiled, **settings)
    return state


def compare(strategy, optimizer, batches, **settings):
    """Trains both ways, and returns the state of the compiled one."""
    plain = trained(strategy, optimizer, batches, compiled=False, **settings)
    compiled = trained(strategy, optimizer, batches, compiled=True, **settings)
    assert_close(copies(compiled), copies(plain), rtol=1e-4, atol=1e-5)
    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_update_is_the_plain_one(one_replica, name):
    """Weights, slots, averages, statistics, and what is counted."""
    state = compare(one_replica, name, [examples(seed=s) for s in range(3)])
    assert state.step == 3


@pytest.mark.slow
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_replicas_compile_an_update_each(two_replicas, on_nan):
    """Of which those that are not finite change nothing on any of them."""
    batches = [examples(seed=s) for s in range(3)]
    batches[1][0][5] = np.nan  # The second replica's.
    state = compare(two_replicas, "adamw", batches, loss_scale=True, on_nan=on_nan)
    assert all(np.all(np.isfinite(x)) for x in copies(state)[: -len(state.guard) - 2])
    assert state.step == (1 if on_nan == "stop" else 3)
    assert state.guard["stuck"].numpy() == (on_nan == "stop")
    assert state.window["steps"].numpy() == (1 if on_nan == "stop" else 2)


@pytest.mark.slow
def test_an_overflow_halves_the_scale_when_compiled(one_replica):
    batches = [examples(seed=s) for s in range(3)]
    batches[1][0][0] = 1e36  # Finite, and so is its loss, but not its gradient times 2^15.
    state = compare(one_replica, "sgd", batches, loss_scale=True)
    assert state.loss_scale.scale.numpy() == 2.0**14
    assert (state.step, state.window["steps"].numpy()) == (3, 2)


def operations(graph_def):
    """How often each operation is in a graph and the functions that are no clusters of XLA."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    found, queue = {"cluster": 0}, [graph_def.node]
    while queue:
        for node in queue.pop():
            found[node.op] = found.get(node.op, 0) + 1
            names = [value.func.name for value in node.attr.values() if value.HasField("func")]
            for function in map(functions.get, names):
                compiled = function.attr["_XlaMustCompile"].b
                found["cluster"] += compiled
                if not compiled:
                    queue.append(function.node_def)
    return found


@pytest.mark.slow
def test_a_compiled_update_is_one_operation_without_a_branch(one_replica):
    """What follows the gradients: no operation for each variable, and none that needs the host."""
    found = {}
    for compiled in (False, True):
        state = make_state(one_replica, Statistics, ema=True)
        update = StateUpdate(one_replica, state, StepSettings(8, **SETTINGS), compiled=compiled)

        @tf.function
        def call(update=update, state=state):
            gradients = [tf.ones(v.shape) for v in state.net.trainable_variables]
            names = [n for n in state.window if n not in NOT_SUMS]
            sums = {name: tf.ones(state.window[name].shape, tf.float32) for name in names}
            statistics = [tf.ones(v.shape) for v in state.net.non_trainable_variables]
            update(gradients, sums, statistics, statistics)

        graph = call.get_concrete_function().graph
        found[compiled] = operations(graph.as_graph_def())
    assert found[False]["cluster"] == 0
    assert found[False]["If"] == 1
    assert found[True]["cluster"] == 1
    assert found[True].keys() <= {
        "cluster",
        "Const",
        "Placeholder",
        "Fill",
        "NoOp",
        "Identity",
        "PartitionedCall",
        "StatefulPartitionedCall",
    }


NOT_SUMS = ("gradient_norm", "highest_loss", "highest_loss_step", "examples", "steps")


@pytest.mark.parametrize(
    ("devices", "works", "compiled"),
    [
        (["/device:CPU:0", "/device:CPU:1"], True, False),
        (["/device:GPU:0", "/device:GPU:1"], True, True),
        (["/device:GPU:0"], False, False),
    ],
)
def test_updates_are_compiled_on_gpus_where_xla_works(
    one_replica, monkeypatch, devices, works, compiled
):
    monkeypatch.setattr("loops.update.xla_compiles", lambda device: works)
    extended = types.SimpleNamespace(worker_devices=tuple(devices))
    strategy = types.SimpleNamespace(extended=extended)
    state = make_state(one_replica)
    assert StateUpdate(strategy, state, StepSettings(8)).compiled == compiled


def test_xla_that_cannot_compile_is_found_out(monkeypatch):
    """As on a GPU without CUDA's library of device functions."""

    def function(**kwargs):
        assert kwargs == {"jit_compile": True}

        def call(_):
            raise tf.errors.InternalError(None, None, "libdevice not found")

        return lambda _: call

    assert xla_compiles("CPU:0")
    monkeypatch.setattr("tensorflow.function", function)
    assert not xla_compiles("CPU:0")
