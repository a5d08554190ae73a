"""Data sets: raw files -> verified shards -> batches.

sources (raw, archives)                      ->  raw files, wherever they lie
formats/* (discover, images, splits)         ->  a plan: samples by shard part
prepare (convert, writer, duplicates)        ->  shards + index + manifest
manifest, index, reader, order               ->  any sample by number, any epoch's order
transforms, loaders                          ->  batches and cases
"""

from rwkvctl.data.manifest import Manifest

__all__ = ["Manifest"]
