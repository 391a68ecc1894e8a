"""What a person can ask for: one file per command, the configuration, and the handle on a run.

Importing this package selects TensorFlow as Keras' backend, whatever the environment and
`~/.keras/keras.json` say.
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
