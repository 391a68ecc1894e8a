"""Answers of an exported model, computed without this project.

    python -I commands/verify_export.py FORMAT MODEL IMAGES ANSWERS

`commands/export.py` runs this file in a process of its own, in which Python finds no module of this
project. It also shows how an exported model is used.

FORMAT is saved_model, tflite or onnx. IMAGES is a file of uint8 [n, height, width, channels], and
ANSWERS is written with the probabilities, float32 [n, classes], both in NumPy's format .npy.
"""

import os
import sys

import numpy as np

BATCH_SIZE = 128  # The last batch is smaller: a model takes any number of images.


def load_saved_model(path: str):
    """Returns a function from uint8 images to probabilities."""
    import tensorflow as tf

    # It belongs to this object, which has to be kept.
    loaded = tf.saved_model.load(path)

    def predict(images):
        return loaded.signatures["serving_default"](images=tf.constant(images))["probabilities"]

    return predict


def load_tflite(path: str):
    """Returns a function from uint8 images to probabilities."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(path, num_threads=os.cpu_count())
    (images_in,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()

    def predict(images):
        interpreter.resize_tensor_input(images_in["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(images_in["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(outputs["index"])

    return predict


def load_onnx(path: str):
    """Returns a function from uint8 images to probabilities."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


LOAD = {"saved_model": load_saved_model, "tflite": load_tflite, "onnx": load_onnx}


def main(format: str, model: str, images: str, answers: str) -> None:
    """Writes the answers for a file of images."""
    predict = LOAD[format](model)
    images = np.load(images, mmap_mode="r", allow_pickle=False)
    starts = range(0, len(images), BATCH_SIZE)
    found = [np.asarray(predict(np.array(images[i : i + BATCH_SIZE]))) for i in starts]
    np.save(answers, np.concatenate(found), allow_pickle=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
