"""What a person can ask for: one file per command, the configuration, and the handle on a run.

Importing this package selects TensorFlow as Keras' backend, whatever the environment and
`~/.keras/keras.json` say. It also selects oneDNN on CPUs, unless the environment decides that. Both
take effect only before TensorFlow is imported.
"""

import os
import sys

_keras = sys.modules.get("keras")
if _keras is not None and _keras.config.backend() != "tensorflow":
    raise ImportError(
        f"Keras is loaded with the {_keras.config.backend()} backend; import commands before keras"
    )
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_USE_LEGACY_KERAS"] = "0"
# By itself TensorFlow uses oneDNN only on processors with AVX-512 or AMX for neural networks. On
# those with AVX2 alone, training is 1.4 to 2.6 times as fast as with Eigen (BUILD.md).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
