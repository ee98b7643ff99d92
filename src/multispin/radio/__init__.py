"""Signal to rate: units, channels. Pure functions over arrays of devices; no I/O."""
