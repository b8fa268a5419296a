"""``tokenwm pull OWNER/NAME --out DIR``: fetch a checkpoint or a dataset, and check it."""

from tokenwm.cli.console import console_of, give, say
from tokenwm.cli.options import parse
from tokenwm.hub.transfer import pull


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("pull", argv)
    commit = pull(
        arguments.repository,
        arguments.out,
        kind="dataset" if arguments.dataset else "model",
        revision=arguments.revision,
        max_bytes=int(arguments.max_gigabytes * 2**30),
        overwrite=arguments.overwrite,
    )
    say(
        console_of(arguments),
        f"pulled {arguments.repository} to {arguments.out}; every hash is right",
    )
    give(arguments, {"repository": arguments.repository, "out": arguments.out, "commit": commit})
    return 0
