"""The platform around RWKV-UNet: command line, job specs, data, tracking, registry, cluster."""

__version__ = "0.2.0.dev0"
