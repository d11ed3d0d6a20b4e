"""The command line: doctor, status, verify, bench, reuse."""
