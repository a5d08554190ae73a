"""What a sweep tries next, what it stops, and the Optuna study that it keeps."""
