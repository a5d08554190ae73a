"""Data sets: raw files -> verified shards -> batches. Rooms in the order in which they build on one another:

images    pixels and voxels of any file
store     a prepared data set: shards, index, splits, manifest
feed      a data set as batches and cases
convert   downloads as data sets
"""
