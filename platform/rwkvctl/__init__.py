"""The platform around RWKV-UNet: command line, job specs, data, tracking, registry, cluster."""

__version__ = "0.1.0"
