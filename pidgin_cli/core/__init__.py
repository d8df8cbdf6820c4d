"""Values only: types, events and errors. No I/O, no clock."""
