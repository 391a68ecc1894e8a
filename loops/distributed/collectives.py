"""How replicas exchange tensors.

The gradients of a step are summed over the replicas in packs, in an order that depends on nothing
but the net. On GPUs, the exchange of a pack starts when its gradients are there, while those of
earlier layers are still computed, and NCCL carries it, on one machine as well as between several.

On CPUs, which exchange in TensorFlow's rings, all gradients are one pack: the order in which a ring
adds three or more numbers depends on their place in the pack.
"""

import tensorflow as tf

# As in PyTorch's DistributedDataParallel. The gradients of ResNet-50 make four packs.
_PACK_BYTES = 25 * 2**20


def gradient_options(on_gpus: bool) -> tf.distribute.experimental.CommunicationOptions:
    """The options of the `all_reduce` of gradients.

    `MirroredStrategy` takes no options when it is made, so these are given to each call.
    """
    return tf.distribute.experimental.CommunicationOptions(
        bytes_per_pack=_PACK_BYTES if on_gpus else 0
    )


def worker_options(on_gpus: bool) -> tf.distribute.experimental.CommunicationOptions:
    """The options of all exchanges between workers; TensorFlow's are rings over gRPC everywhere.

    `MirroredStrategy` chooses NCCL itself.
    """
    implementations = tf.distribute.experimental.CommunicationImplementation
    return tf.distribute.experimental.CommunicationOptions(
        implementation=implementations.NCCL if on_gpus else implementations.AUTO
    )
