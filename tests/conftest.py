"""For all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# How long one example takes is the machine's business: one that is busy must not fail a test.
settings.register_profile("wsfs", deadline=None)
settings.load_profile("wsfs")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is in a job that a script has put into the background, and in what the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
