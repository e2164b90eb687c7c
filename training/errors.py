"""What can go wrong in training in a way that the person at the keyboard can mend.

TrainingError
├── ConfigRefused     the YAML or a value of the command line is wrong
├── DatasetError      a file is missing, unreadable, or not in the stated format
├── CheckpointError   a model folder is missing, incomplete, or of another kind
├── CollapsedModel    the model answers one class for nearly everything: refused
├── SiteRefused       the YAML of a site is wrong
├── CollectionError   a crawl that cannot begin or go on: refused, unreachable, or another one runs
├── SearchError       a search folder is missing, incomplete, or none of its trials succeeded
├── TrackingError     MLflow cannot be reached, or does not hold what is asked for
├── RegistryError     a registration, promotion or rollback that the registry refuses
│   ├── GateClosed      a promotion that the gates refuse
│   └── RegistryBusy    another command is changing it
└── SettingRefused    an environment variable of this room is empty or wrong
"""


class TrainingError(Exception):
    """Its message is one sentence that names limit, value and remedy; commands print it and exit with 2."""


class ConfigRefused(TrainingError):
    pass


class DatasetError(TrainingError):
    pass


class CheckpointError(TrainingError):
    pass


class CollapsedModel(TrainingError):
    pass


class SiteRefused(TrainingError):
    pass


class CollectionError(TrainingError):
    pass


class SearchError(TrainingError):
    pass


class TrackingError(TrainingError):
    pass


class RegistryError(TrainingError):
    pass


class GateClosed(RegistryError):
    pass


class RegistryBusy(RegistryError):
    pass


class SettingRefused(TrainingError):
    pass
