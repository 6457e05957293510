"""What holds for all tests."""

import signal

from hypothesis import settings

# A shell that runs pytest in the background has it ignore Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("untimed", deadline=None)  # an example may be slow where the machine is busy
settings.load_profile("untimed")
