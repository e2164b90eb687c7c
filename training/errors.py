"""What can go wrong in training in a way that the person at the keyboard can mend.

TrainingError
├── DatasetError      a file is missing, unreadable, or not in the stated format
├── CheckpointError   a model folder is missing, incomplete, or of another kind
├── CollapsedModel    the model answers one class for nearly everything: refused
└── SettingRefused    an environment variable of this room is empty or wrong
"""


class TrainingError(Exception):
    """Its message is one sentence that names limit, value and remedy; commands print it and exit with 2."""


class DatasetError(TrainingError):
    pass


class CheckpointError(TrainingError):
    pass


class CollapsedModel(TrainingError):
    pass


class SettingRefused(TrainingError):
    pass
