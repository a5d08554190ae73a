"""Jobs written down for somebody else to start: a manifest for KubeRay, a script for Slurm."""
