"""Every error a user can cause. Each message says what was given, what is allowed, what to do."""


class TokenwmError(ValueError):
    """Base of all errors raised at a border of tokenwm (files, configs, arguments)."""


class RecipeError(TokenwmError):
    """A data recipe or a config has an unknown key or an impossible value."""


class SourceError(TokenwmError):
    """A source of episodes is missing, unreadable or not laid out as expected."""


class EpisodeError(TokenwmError):
    """One episode breaks a data rule; the message names the episode, the rule and the value."""


class ShardError(TokenwmError):
    """A shard or a manifest is missing, damaged, unsafe, or of another schema version."""


class CorruptSampleError(ShardError):
    """The stored bytes of one episode are damaged; the message names its shard and key."""


class EngineError(TokenwmError):
    """The engine that should run tasks is not installed, or lost one of them."""


class CheckpointError(TokenwmError):
    """A checkpoint is missing, damaged, or does not belong to the data or tokenizer at hand."""


class ShapeError(TokenwmError):
    """A tensor does not have the shape that the border it crosses asks for."""


class SweepError(TokenwmError):
    """Runs of a sweep cannot be planned, read, or answer what is asked of them."""
