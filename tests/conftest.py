"""What holds for all tests."""

import signal

# A shell that runs pytest in the background has it ignore Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
