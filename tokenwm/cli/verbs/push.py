"""``tokenwm push PATH OWNER/NAME``: publish a checkpoint or a dataset on the Hugging Face hub."""

from tokenwm.cli.console import console_of, give, say
from tokenwm.cli.options import parse
from tokenwm.hub.transfer import push


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("push", argv)
    where = push(
        arguments.path, arguments.repository, report=arguments.report, private=arguments.private
    )
    say(console_of(arguments), f"pushed {arguments.path} to {where}")
    give(arguments, {"path": arguments.path, "repository": arguments.repository, "commit": where})
    return 0
