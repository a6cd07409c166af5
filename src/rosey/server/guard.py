"""Runs a program and ends it when standard input closes: for systems without a POSIX shell.

Started as `python guard.py PROGRAM ARGUMENTS...`; it may not import anything of ours.
"""

import subprocess
import sys

if __name__ == "__main__":
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    sys.stdin.read()
    child.terminate()
    child.wait()
