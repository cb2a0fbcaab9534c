"""Data sets in other people's formats: LeRobot (v3.0 read and written, v2.1 read), robomimic's HDF5 (read and written).

`envs.data.formats.folder.open_episodes` is what everybody calls: it looks at what is there.
"""
