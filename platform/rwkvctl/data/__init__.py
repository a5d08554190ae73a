"""Data sets: raw files -> verified shards -> batches.

prepare (formats/*, images, splits, writer)  ->  shards + index + manifest
manifest, index, reader, order               ->  any sample by number, any epoch's order
transforms, loaders                          ->  batches and cases
"""

from rwkvctl.data.manifest import Manifest

__all__ = ["Manifest"]
