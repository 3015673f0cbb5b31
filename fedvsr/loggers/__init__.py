"""Where a run's curves go besides its tables: TensorBoard, MLflow, Weights & Biases."""
