"""What the host knows: which process makes a request, how it ends, and whose account a name is.

Everything here may be asked by an event loop that must never block (a filesystem's loop waiting for
a process that waits for the filesystem waits for ever), so each module says what it asks at once,
what in a thread, and for how long.

* ``pidfd``: a process as a descriptor: alive or not, and how it ended.
* ``procfs``: what ``/proc`` says at once and what only a thread may ask.
* ``processes``: the table of processes, from the thread ids of requests.
* ``accounts``: the user database, which may be slow or hang.
"""
