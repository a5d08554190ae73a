"""What runs on the cluster: one module a job, recipes and sweep spaces in YAML beside them."""
