"""One training run: its processes, its saved states, its training log, its card.

fitting      the stage, and the training in one process, with states saved on the way
distributed  several processes: their start on torch's elastic agent, and what they do together
runs         saved states, the training log
card         the stage `register`: the model and its card in one folder
planning     a preset for a folder of images and minutes of training
"""
