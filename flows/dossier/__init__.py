"""What is known of a model: its results, read once, from a folder, the project's outputs or a version.

dossier      the results of a model, each read when it is asked for, and checked to belong together
tables       CSV files and arrays of results, which must be whole
places       where results lie: in the project's outputs, or in a model folder
versions     the results of a version, whose files are fetched
opening      the dossier of a model by its name
calibration  what surprise compares images with, and the images that a model has seen
origin       where results come from, and how to make them again
"""
