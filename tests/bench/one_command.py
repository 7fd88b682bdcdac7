"""The smallest click program there can be: what `holdover --help` is measured against."""

import click


@click.command()
@click.option("--name", help="Who.")
def hello(name: str) -> None:
    """Say hello."""
    click.echo(f"Hello, {name}.")


if __name__ == "__main__":
    hello()
