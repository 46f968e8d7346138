"""One training: its processes, its saved states, its training log, its end.

fitting           the stage, and the training in one process, with states saved on the way
distributed       several processes: their start on torch's elastic agent, and what they do together
states            saved states, the training log
registering       the stage `register`: the model, what is known of its training, and its card in one folder
arrays            a training on arrays in memory, which writes nothing: `flows.api.train`
planning          a preset for a folder of images and minutes of training: `vdmctl preset --images`
planning_images   what suits the images
planning_minutes  what suits the minutes, by steps that are measured
choice            a value for a parameter, and the reason for it
"""
