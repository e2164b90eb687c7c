"""What can go wrong in an export in a way that the person at the keyboard can mend.

ExportError
├── SettingRefused       an environment variable is empty or wrong
├── NoChampion           no checkpoint is named, and the registry has promoted none
├── NothingServes        the repository serves no version yet
├── CheckpointError      the folder is missing, incomplete or contradicts itself
│   └── UnsupportedModel   it is whole, but a model that this exporter cannot express
├── DataError            the labelled reviews of the parity gate are missing, malformed or too few
├── GateClosed           no remedy made a file that answers like torch: nothing is published
├── BundleBroken         a written bundle does not read back as it was written
├── PackingFailed        torch-model-archiver could not write a .mar
├── RepositoryError      the model repository cannot take this version
│   ├── RepositoryBusy     another command is changing it
│   ├── RepositoryAway     it cannot be read or written now, or is gone
│   └── RepositoryFull     there is no room for what is to be written
├── TritonAway           Triton is needed and does not answer, or not to this key
│   └── TritonLost         it went away while it loaded or proved a version, which may be why
└── ReleaseRefused       Triton or the gateway does not serve this version; the one before goes on
"""


class ExportError(Exception):
    """Its message is one sentence that names limit, value and remedy; the command prints it and exits with 2."""


class SettingRefused(ExportError):
    pass


class NoChampion(ExportError):
    pass


class NothingServes(ExportError):
    pass


class CheckpointError(ExportError):
    pass


class UnsupportedModel(CheckpointError):
    pass


class DataError(ExportError):
    pass


class GateClosed(ExportError):
    pass


class BundleBroken(ExportError):
    pass


class PackingFailed(ExportError):
    pass


class RepositoryError(ExportError):
    pass


class RepositoryBusy(RepositoryError):
    pass


class RepositoryAway(RepositoryError):
    pass


class RepositoryFull(RepositoryError):
    pass


class TritonAway(ExportError):
    pass


class TritonLost(TritonAway):
    pass


class ReleaseRefused(ExportError):
    pass
