"""Models of other implementations, and models for others.

importing  checkpoints of other implementations as model folders
exporting  a model as a repository of the Hugging Face Hub
"""
