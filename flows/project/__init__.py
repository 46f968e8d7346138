"""A project's folder: parameters, images, models, versions and results.

project  the folder, opened once at the door and passed along
"""
