"""The parts of `compare_speed.py`: what is compared, each in a process of its own, in turns.

`worker.py` runs in those processes, with the interpreter that has the framework; `process.py`,
`parts.py` and `report.py` in that of the command, which imports no framework.
"""
