"""What holds in every process of tests."""

import gc

gc.set_threshold(50_000, 10, 10)  # as `pidgin run` has it: looking for cycles takes a twentieth of the suite's time
