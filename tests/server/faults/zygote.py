"""A process that has imported everything a server needs, and forks one for each line of its input.

A line is a JSON object: `args` of `guardrail serve`, `log` (the file for stderr) and `before` (code
to run first), answered by the process's number; or `wait`, such a number, answered by its exit
code. Importing takes seconds, forking does not.
"""

from __future__ import annotations

import json
import os
import sys

import transformers
import uvicorn.protocols.http.h11_impl  # noqa: F401

import guardrail.cli.main
import guardrail.cli.serve
import guardrail.guard
import guardrail.model.load
import guardrail.server.app
import guardrail.server.process
import guardrail.server.reload  # noqa: F401
from guardrail.__main__ import main

for name in ("LlavaForConditionalGeneration", "LlavaProcessor", "AutoModelForImageTextToText"):
    getattr(transformers, name)


def begin(order: dict[str, object]) -> None:
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    sys.argv = ["guardrail", "serve", *map(str, order["args"])]
    exec(str(order["before"]), {})
    main()


for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        told = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
    else:
        told = os.fork()
        if told == 0:
            begin(order)  # ends by SystemExit
    sys.stdout.write(f"{told}\n")
    sys.stdout.flush()
