"""Errors that a user can mend; the command line prints them without a traceback and exits with code 2."""


class CLLM4RecError(ValueError):
    """Base of the errors below."""


class DataError(CLLM4RecError):
    """Input or prepared data that cannot be used."""


class UnknownIdError(CLLM4RecError):
    """An external id that the catalog lacks."""


class HubError(CLLM4RecError, OSError):
    """A Hub repository that cannot be read or written; an OSError too, as transformers' own errors of loading are."""
