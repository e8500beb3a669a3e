"""Looking whether a spool is in order, without changing or locking anything.

- `findings`: what can be found, how bad it is, and what to do about it.
- `separator`: which lines begin a message.
- `mailbox`, `nuls`: the text of one mailbox, as a function of chunks.
- `lockfiles`, `state`, `journal`: lock files, ``.mailfs/``, and what the journal holds.
- `spool`: all of it for a directory, one mailbox after the other.
- `report`: for people, and as JSON.
"""
