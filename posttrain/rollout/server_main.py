"""vLLM's API server as a process of its own: what `vllm serve` runs, also where the package is not called `vllm`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from posttrain.rollout.vllm_process import missing


def main(arguments: Sequence[str]) -> None:
    """Serve until a signal ends it. MissingDependencyError where vLLM is not installed."""
    try:
        from vllm.entrypoints.cli.serve import ServeSubcommand, make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise missing() from error
    parsed = make_arg_parser(FlexibleArgumentParser(prog="posttrain serve")).parse_args(list(arguments))
    server = ServeSubcommand()
    server.validate(parsed)
    server.cmd(parsed)


if __name__ == "__main__":
    main(sys.argv[1:])
