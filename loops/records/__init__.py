"""What a run leaves on disk and prints: checkpoints, metrics, TensorBoard, terminal."""
