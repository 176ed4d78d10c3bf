"""What everything else stands on: frames, keyed randomness, devices, files, errors, logs."""
