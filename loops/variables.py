"""The variables of a net by name, the names under which a checkpoint holds them."""

import tensorflow as tf

from loops.errors import RunError


def tensor_variable(variable) -> tf.Variable:
    """The tf.Variable inside a Keras variable."""
    return variable.value if isinstance(variable, tf.keras.Variable) else variable


def named_variables(net: tf.keras.layers.Layer) -> dict[str, tf.keras.Variable]:
    """Every variable of a built net, in the order of `net.variables`, by its path from the net.

    The paths are those of tf.train.Checkpoint, as `stage_1/block_0/conv/kernel`.

    Raises:
        RunError: a checkpoint would not hold a variable, as its layer is in a list or dictionary.
    """
    view = tf.train.TrackableView(net)
    paths, queue = {}, [(net, ())]
    seen = {id(net)}
    while queue:
        trackable, path = queue.pop(0)
        paths.setdefault(id(tensor_variable(trackable)), "/".join(path))
        for name, child in view.children(trackable).items():
            if id(child) not in seen:
                seen.add(id(child))
                queue.append((child, (*path, name.lstrip("_"))))
    lost = [v.path for v in net.variables if id(tensor_variable(v)) not in paths]
    if lost:
        more = f" and {len(lost) - 1} more variables" if len(lost) > 1 else ""
        how = "hold layers as attributes or in tuples, not in lists or dictionaries"
        if "seed_generator" in lost[0]:
            how = "of Keras' random layers; use nets.dropout in their place"
        raise RunError(f"a checkpoint would not hold {lost[0]}{more} of the net: {how}")
    return {paths[id(tensor_variable(v))]: v for v in net.variables}


def updated_statistics(net: tf.keras.layers.Layer) -> list[tf.keras.Variable]:
    """The variables that a call of a net in training updates: moving statistics.

    They are what is not trainable, but for stages that are frozen.
    """
    frozen = [stage for stage in getattr(net, "stages", {}).values() if not stage.trainable]
    fixed = {id(v) for stage in frozen for v in stage.variables}
    return [v for v in net.non_trainable_variables if id(v) not in fixed]


def nest(flat: dict[str, object]) -> dict:
    """{"a/b": x} as {"a": {"b": x}}, so that a checkpoint's keys read like paths."""
    nested = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return nested
