"""`rwkvctl doctor`: what would break a job on this machine or on a cluster, found before one is started."""
