"""Signals at every bytecode of a call: what the arbitrary moment of a Ctrl-C comes down to."""

import re
import signal
import sys


def interrupted(call, at, within="fastopt"):
    """Calls with a SIGINT before the bytecode of this number, of those in files of such names.

    Returns whether there were as many.
    """
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        frame.f_trace_opcodes = True
        if event == "opcode" and re.search(within, frame.f_code.co_filename):
            count += 1
            if count == at:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return count >= at


def warmed_up():
    """Python 3.12 has no events of bytecodes the first time."""
    return "bytecodes"


interrupted(warmed_up, 10**9, "signals")
