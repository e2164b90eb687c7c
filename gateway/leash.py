"""Run a command that dies with whoever started it: `python -m gateway.leash PARENT COMMAND …`.

It is a program, not a function between fork and exec: the gateway has threads of gRPC and Ray, and Python code that
runs in a forked copy of them can hang for ever.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; it outlasts execve

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job of a shell would leave it ignored
    if os.getppid() == parent:  # else it was too late for the signal
        os.execv(command[0], command)
